"""Knows which source of a setting wins: flag, environment variable, file, default; not what the settings mean."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, TypeVar

from paceline.core.config_file import read_toml, unknown_key
from paceline.core.errors import ConfigError
from paceline.core.settings import Setting, checked, parsed, settings_of

FILE_NAME = "paceline.toml"
FILE_VARIABLE = "PACELINE_CONFIG"
KINDS = ("flag", "environment", "file", "default")
"""Where a value may come from; the earlier named wins."""
MASK = "********"

Options = TypeVar("Options")


@dataclass(frozen=True, slots=True)
class Section:
    """Settings that lie together: a table of the file, a panel of the help."""

    name: str
    """The file's table; "" is the top of the file."""
    kind: type[Any]
    title: str

    def place(self, key: str) -> str:
        return f"[{self.name}] {key}" if self.name else key


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value came from."""

    kind: str
    """One of ``KINDS``."""
    name: str = ""
    """The flag, the variable, or the file and the key in it."""

    @property
    def rank(self) -> int:
        """The lower one wins."""
        return KINDS.index(self.kind)


@dataclass(frozen=True, slots=True)
class Found:
    """A setting's value and where it came from."""

    setting: Setting
    value: Any
    source: Source

    @property
    def given(self) -> bool:
        """Whether anybody set it."""
        return self.source.kind != "default"

    @property
    def shown(self) -> Any:
        """The value as people may see it, ready for JSON: None where it is not set; secrets are masked."""
        if self.value is MISSING or self.value is None:
            return None
        if self.setting.about.secret:
            return MASK if self.value else self.value
        if isinstance(self.value, tuple):
            return list(self.value)
        return str(self.value) if isinstance(self.value, Path) else self.value


@dataclass(frozen=True, slots=True)
class Resolution:
    """Every setting of every section, resolved."""

    sections: Sequence[Section]
    found: Mapping[str, Mapping[str, Found]]
    """Section name -> field name -> value."""
    files: Sequence[Path]
    """The files that were read; the earlier one wins."""

    def given(self, section: str) -> dict[str, Any]:
        """The values of a section that somebody set."""
        return {name: found.value for name, found in self.found[section].items() if found.given}

    def build(self, kind: type[Options]) -> Options:
        """The section's options as their dataclass.

        Raises:
            ConfigError: values that cannot be together.
        """
        section = next(section for section in self.sections if section.kind is kind)
        return kind(**self.given(section.name))


def config_files(
    explicit: Path | None, environment: Mapping[str, str] = os.environ, directory: Path | None = None
) -> list[tuple[Path, str]]:
    """The files to read, the one that wins first, and what names each.

    One that was named is the only one; otherwise ./paceline.toml and the user's own, as far as they are there.
    """
    if explicit is not None:
        return [(explicit, "--config")]
    if environment.get(FILE_VARIABLE):
        return [(Path(environment[FILE_VARIABLE]), FILE_VARIABLE)]
    places = [(directory or Path.cwd()) / FILE_NAME, user_directory(environment) / FILE_NAME]
    return [(path, "the file's permissions") for path in places if path.is_file()]


def user_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Where a user's own settings lie."""
    base = environment.get("XDG_CONFIG_HOME") or environment.get("APPDATA")
    return (Path(base) if base else Path.home() / ".config") / "paceline"


def resolve(
    sections: Sequence[Section],
    *,
    flags: Mapping[str, Any],
    environment: Mapping[str, str] = os.environ,
    files: Sequence[tuple[Path, str]] = (),
) -> Resolution:
    """Finds every setting's value.

    Args:
        flags: those that were given, by ``Setting.parameter``.
        environment: an empty variable counts as not set.
        files: TOML files and what names each, as ``config_files`` gives them.

    Raises:
        ConfigError: an unknown key, or a value that cannot be, with where it stands and what would be accepted.
    """
    written = [_read(sections, path, named_by) for path, named_by in files]
    found = {
        section.name: {
            name: _from_flag(setting, flags)
            or _from_environment(setting, environment)
            or next((file[section.name][name] for file in written if name in file[section.name]), None)
            or Found(setting, setting.default, Source("default"))
            for name, setting in settings_of(section.kind).items()
        }
        for section in sections
    }
    return Resolution(sections, found, [path for path, _ in files])


def _from_flag(setting: Setting, flags: Mapping[str, Any]) -> Found | None:
    if setting.parameter not in flags:
        return None
    value = checked(setting, flags[setting.parameter], setting.flag)
    return Found(setting, value, Source("flag", setting.off if value is False else setting.flag))


def _from_environment(setting: Setting, environment: Mapping[str, str]) -> Found | None:
    text = environment.get(setting.variable)
    if not text:
        return None
    value = parsed(setting, text, setting.variable, f"Correct or unset {setting.variable}.")
    return Found(setting, value, Source("environment", setting.variable))


def _read(sections: Sequence[Section], path: Path, named_by: str) -> dict[str, dict[str, Found]]:
    """What a file sets, by section and field."""
    written = read_toml(path, named_by)
    tables = {section.name: section for section in sections if section.name}
    top = next((section for section in sections if not section.name), None)
    result: dict[str, dict[str, Found]] = {section.name: {} for section in sections}
    for key, value in written.items():
        if key in tables:
            if not isinstance(value, dict):
                raise ConfigError(f"{path}: {key} must be a section, got a value\nWrite [{key}] and its keys below.")
            result[key] = _read_section(tables[key], value, path)
        elif isinstance(value, dict) or top is None:
            raise unknown_key(f"{path}: unknown section [{key}]", key, tables)
        else:
            result[""] |= _read_section(top, {key: value}, path)
    return result


def _read_section(section: Section, written: Mapping[str, Any], path: Path) -> dict[str, Found]:
    settings = settings_of(section.kind)
    result = {}
    for key, value in written.items():
        name, where = key.replace("-", "_"), f"{path}: {section.place(key)}"
        if name not in settings:
            raise unknown_key(f"{path}: unknown key {section.place(key)}", name, settings)
        setting = settings[name]
        result[name] = Found(setting, checked(setting, value, where), Source("file", where))
    return result
