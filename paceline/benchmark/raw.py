"""Knows how a run is kept: one JSON file, rewritten whole after every block, from which the run can go on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paceline.core.errors import ConfigError, shown

FORMAT = 2
IDENTITY = ("kind", "parameters", "plan", "environment")
"""What must be the same for a run to go on from a file."""


class RawFile:
    """The record of one run: who measured what and how, and every block so far."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        """Goes on from the file if there is one.

        Args:
            header: kind, parameters, plan, environment (compared with the file's) and command (only kept).

        Raises:
            ConfigError: the file is not such a record or no regular file, or it is one of a run that differs.
        """
        self.path = path
        fresh = json.loads(json.dumps(dict(header), allow_nan=False))
        self.data: dict[str, Any] = {"format": FORMAT, **fresh, "finished": False, "points": {}}
        if path.exists() and not path.is_file():  # what is replaced in one step must not be /dev/null
            raise ConfigError(f"{path} is not a regular file, so no run can be kept there\nName another file.")
        if path.exists():
            self.data = self._resumed(_read(path))

    def _resumed(self, old: dict[str, Any]) -> dict[str, Any]:
        for key in ("format", *IDENTITY):
            for place, mine, theirs in _differences(key, self.data.get(key), old.get(key)):
                raise ConfigError(
                    f"{self.path} holds a run with {place} {shown(theirs)}, this one has {shown(mine)}\n"
                    "Use another file, or give the same options to go on with that run."
                )
        return old

    def blocks(self, point: str) -> list[dict[str, Any]]:
        """The point's finished blocks."""
        found: list[dict[str, Any]] = self.data["points"].get(point, {}).get("blocks", [])
        return found

    def open_point(self, point: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        entry: dict[str, Any] = self.data["points"].setdefault(point, {"parameters": dict(parameters), "blocks": []})
        return entry

    def save(self) -> None:
        """Replaces the file in one step, so that an interruption leaves the old or the new one, never half of it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f"{self.path.name}.part")
        beside.write_text(json.dumps(self.data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(beside, self.path)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}\nName another file.") from None
    if not isinstance(data, dict) or not isinstance(data.get("points"), dict):
        raise ConfigError(f"{path} is not the record of a benchmark\nName another file.")
    return data


def _differences(place: str, mine: Any, theirs: Any) -> list[tuple[str, Any, Any]]:
    """(where, mine, theirs) of every leaf that differs."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        keys = sorted(set(mine) | set(theirs))
        return [one for key in keys for one in _differences(f"{place}.{key}", mine.get(key), theirs.get(key))]
    return [] if mine == theirs else [(place, mine, theirs)]
