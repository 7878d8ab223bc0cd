"""Knows which packages Paceline needs, per extra, and which of them are installed."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import paceline

CORE = "core"
PROJECT = Path(paceline.__file__).resolve().parents[1] / "pyproject.toml"
NOT_FOR_USERS = ("test", "dev")
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[([\w,]+)\])?(?:.*?>=\s*([\d.]+))?")
_EXTRA = re.compile(r"extra\s*==\s*['\"](\w+)")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One package that an extra, or the core, needs."""

    package: str
    oldest: str | None
    installed: str | None
    """Its version."""

    @property
    def met(self) -> bool:
        return self.installed is not None and _numbers(self.installed) >= _numbers(self.oldest or "0")

    def __str__(self) -> str:
        wanted = f" (needs {self.oldest})" if self.oldest else ""
        return (
            f"{self.package} {self.installed}" if self.met else f"{self.package} {self.installed or 'missing'}{wanted}"
        )


def requirements() -> dict[str, list[Requirement]]:
    """Extra -> what it needs, "core" being everybody; extras that only join others are left out."""
    return {
        extra: [Requirement(name, oldest, _installed(name)) for name, oldest in _split(lines)]
        for extra, lines in _declared().items()
        if extra not in NOT_FOR_USERS and any(_split(lines))
    }


def _declared() -> Mapping[str, list[str]]:
    """Of a checkout's own project file, or else of the installed package."""
    try:
        project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
        if project["name"] == "paceline":
            return {CORE: project["dependencies"], **project["optional-dependencies"]}
    except (OSError, ValueError, KeyError):
        pass
    result: dict[str, list[str]] = {CORE: []}
    try:
        lines = requires("paceline") or []
    except PackageNotFoundError:
        lines = []
    for line in lines:
        extra = _EXTRA.search(line)
        result.setdefault(extra[1] if extra else CORE, []).append(line.partition(";")[0])
    return result


def _split(lines: list[str]) -> Iterator[tuple[str, str | None]]:
    """(package, oldest version); a requirement on this package's own extras is none."""
    for line in lines:
        found = _REQUIREMENT.match(line)
        if found is not None and found[1] != "paceline":
            yield found[1], found[3]


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3])
