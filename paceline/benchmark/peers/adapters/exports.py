"""Knows where a converted copy of a model lies, and makes it once; nothing of formats."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

VARIABLE = "PACELINE_PEER_EXPORTS"
DIRECTORY = Path.home() / ".cache" / "paceline" / "peer-exports"


def exported(model: str, name: str, make: Callable[[Path], None]) -> Path:
    """The copy of a model directory called ``name``, made by ``make(path)`` if it is not there yet.

    Copies are told apart by the directory's files, their sizes and times: another model at the same place is another.
    """
    files = sorted(path for path in Path(model).resolve().iterdir() if path.suffix in (".json", ".safetensors"))
    facts = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    place = Path(os.environ.get(VARIABLE) or DIRECTORY) / digest / name
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f"{os.getpid()}-{name}")  # a copy that was interrupted is never taken for a whole one
        try:
            make(part)
            os.replace(part, place)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            part.unlink(missing_ok=True)
    return place
