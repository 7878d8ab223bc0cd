"""``paceline models``: which models are at hand without downloading: the embedded pair, and the Hub's cache."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from paceline.cli.terminal import FAINT, AsJson, console, print_json, size_text
from paceline.engine.pair import EMBEDDED_DRAFT, EMBEDDED_TARGET


@dataclass(frozen=True, slots=True)
class Listed:
    name: str
    """What to give as MODEL, or None for the embedded pair's parts."""
    place: str
    """"embedded" or "cached"."""
    family: str
    """The checkpoint's ``model_type``."""
    supported: bool
    num_bytes: int
    path: str


def models(*, as_json: AsJson = False) -> None:
    """Lists the models that are embedded and those in the Hugging Face cache."""
    found = [*_embedded(), *_cached()]
    if as_json:
        print_json({"models": [asdict(model) for model in found]})
        return
    out = console()
    table = Table(box=None, pad_edge=False, header_style=FAINT)
    for name in ("model", "where", "family", "size", ""):
        table.add_column(name, justify="right" if name == "size" else "left", overflow="fold")
    for model in found:
        note = "" if model.supported else "not supported"
        table.add_row(model.name, model.place, model.family, size_text(model.num_bytes), note)
    if found:
        out.print(table)
    else:
        out.out("No model is embedded or cached. `paceline generate owner/name` downloads one.")


def _embedded() -> Iterator[Listed]:
    for path in (EMBEDDED_TARGET, EMBEDDED_DRAFT):
        if (path / "config.json").is_file():
            num_bytes = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
            yield _listed(f"paceline-pair ({path.name})", "embedded", path, num_bytes)


def _cached() -> Iterator[Listed]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except (CacheNotFound, OSError):
        return
    for repo in sorted(repos, key=lambda repo: repo.repo_id):
        revisions = sorted(repo.revisions, key=lambda revision: revision.last_modified, reverse=True)
        if repo.repo_type == "model" and revisions:
            yield _listed(repo.repo_id, "cached", Path(revisions[0].snapshot_path), repo.size_on_disk)


def _listed(name: str, place: str, path: Path, num_bytes: int) -> Listed:
    from paceline.models import families

    try:
        family = str(json.loads((path / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        family = "unknown"
    return Listed(name, place, family, family in families, num_bytes, str(path))
