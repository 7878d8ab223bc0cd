"""Knows how flags, a TOML file, a preset and the defaults become options; the earlier named wins."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from paceline.core.errors import ConfigError
from paceline.training.options import About, DraftOptions, EvaluateOptions, TargetOptions

Options = TypeVar("Options", TargetOptions, DraftOptions, EvaluateOptions)
NAMES = {int: "an integer", float: "a number", str: "text", Path: "a path", bool: "true or false"}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, slots=True)
class Setting:
    """One option of a recipe."""

    name: str
    kind: Any
    """int, float, bool, str, Path, or tuple for a list of texts."""
    about: About
    default: Any
    """MISSING where there is none."""


def settings_of(kind: type[Any]) -> dict[str, Setting]:
    """The options of a recipe by name, in their order."""
    hints = get_type_hints(kind, include_extras=True)
    settings = {}
    for item in fields(kind):
        hint, about = get_args(hints[item.name])
        if isinstance(hint, UnionType):
            hint = next(one for one in get_args(hint) if one is not NoneType)
        settings[item.name] = Setting(item.name, get_origin(hint) or hint, about, item.default)
    return settings


def resolve(kind: type[Options], flags: Mapping[str, Any], config: Path | None = None) -> Options:
    """Builds the options of a recipe.

    Args:
        flags: those that were given, by field name.
        config: a TOML file with the flags' names as keys. Paths in it are relative to where the command runs.

    Raises:
        ConfigError: naming the file and the key, or the flag.
    """
    settings = settings_of(kind)
    values = {name: _checked(settings[name], value, flag(name)) for name, value in flags.items()}
    if config is not None:
        values = _read(settings, config) | values
    if "preset" in settings:
        values = dict(kind.PRESETS[values.get("preset", settings["preset"].default)]) | values
    for name, setting in settings.items():
        if setting.default is MISSING and not values.get(name):
            raise ConfigError(f"{flag(name)} is missing\nGive it, or {name} in the file of --config; see --help.")
    return kind(**values)


def _read(settings: Mapping[str, Setting], path: Path) -> dict[str, Any]:
    try:
        written = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})\nCorrect --config.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}\nSave the file as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML ({error})\nCorrect the file.") from None
    values = {}
    for key, value in written.items():
        name = key.replace("-", "_")
        if name not in settings:
            raise ConfigError(f"{path}: unknown key {key!r}\nChoose from: {', '.join(settings)}.")
        values[name] = _checked(settings[name], value, f"{path}: {key}")
    return values


def _checked(setting: Setting, value: Any, where: str) -> Any:
    """The value as the option wants it, within its limits."""
    converted, about = _convert(setting.kind, value, where), setting.about
    if about.low is not None and not about.low <= converted < float("inf"):
        raise ConfigError(f"{where} must be at least {about.low}, got {value}\nChange it.")
    if about.above is not None and not about.above < converted < float("inf"):
        raise ConfigError(f"{where} must be above {about.above}, got {value}\nChange it.")
    if about.choices and converted not in about.choices:
        raise ConfigError(f"{where} is {value!r}\nChoose one of: {', '.join(about.choices)}.")
    return converted


def _convert(kind: Any, value: Any, where: str) -> Any:
    if kind is tuple:
        many = [value] if isinstance(value, str) else value
        if not isinstance(many, list | tuple) or not all(isinstance(one, str) for one in many):
            raise _wrong_type(where, "text or a list of texts", value)
        return tuple(many)
    accepted = {float: (int, float), Path: (str, Path)}.get(kind, (kind,))
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise _wrong_type(where, NAMES[kind], value)
    return value if kind is bool else kind(value)


def _wrong_type(where: str, wanted: str, value: Any) -> ConfigError:
    return ConfigError(f"{where} must be {wanted}, got {value!r}\nCorrect it.")
