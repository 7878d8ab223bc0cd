"""Knows how a peer gets a virtual environment of its own, made once and reused while its requirements are the same."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from paceline.benchmark.peers.process import PeerError

INSTALL_SECONDS = 3600


def environment_python(directory: Path, name: str, requirements: Sequence[str]) -> Path:
    """The Python of the environment ``directory/name-...``, made and filled if it is not there yet.

    Raises:
        PeerError: it could not be made, or a requirement could not be installed; pip's own last line is the reason.
    """
    digest = hashlib.sha256("\n".join(requirements).encode()).hexdigest()[:8]
    place = directory / f"{name}-{digest}"
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    complete = place / "complete"
    if not complete.exists():
        _run([sys.executable, "-m", "venv", "--clear", str(place)])
        _run([str(python), "-m", "pip", "install", "--quiet", *requirements])
        complete.touch()
    return python


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(  # noqa: S603 (our own commands, without a shell)
            command, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(f"its environment could not be made: {error}") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no reason was given"]
        raise PeerError(f"its environment could not be made: {said[-1]}")
