"""Knows how flags, a TOML file, a preset and the defaults become a recipe's options; the earlier named wins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any, TypeVar

from paceline.core.config_file import read_toml, unknown_key
from paceline.core.errors import ConfigError
from paceline.core.settings import Setting, checked, settings_of
from paceline.training.options import MeasureOptions

Options = TypeVar("Options", bound=MeasureOptions)


def resolve(kind: type[Options], flags: Mapping[str, Any], config: Path | None = None) -> Options:
    """Builds the options of a recipe.

    Args:
        flags: those that were given, by field name.
        config: a TOML file with the flags' names as keys. Paths in it are relative to where the command runs.

    Raises:
        ConfigError: naming the file and the key, or the flag.
    """
    settings = settings_of(kind)
    values = {name: checked(settings[name], value, settings[name].flag) for name, value in flags.items()}
    if config is not None:
        values = _read(settings, config) | values
    if "preset" in settings:
        values = dict(kind.PRESETS[values.get("preset", settings["preset"].default)]) | values
    for name, setting in settings.items():
        if setting.default is MISSING and not values.get(name):
            raise ConfigError(f"{setting.flag} is missing\nGive it, or {name} in the file of --config; see --help.")
    return kind(**values)


def _read(settings: Mapping[str, Setting], path: Path) -> dict[str, Any]:
    values = {}
    for key, value in read_toml(path).items():
        name = key.replace("-", "_")
        if name not in settings:
            raise unknown_key(f"{path}: unknown key {key!r}", name, settings)
        values[name] = checked(settings[name], value, f"{path}: {key}")
    return values
