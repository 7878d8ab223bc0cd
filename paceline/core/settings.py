"""Knows how options are described beside the fields that hold them, and checks values; not where values come from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from paceline.core.errors import ConfigError, shown

KINDS: Mapping[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    Path: "a path",
    tuple: "text or a list of texts",
}
WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True, slots=True)
class About:
    """What people should know of an option, and which values it may have: ``field: Annotated[int, About(...)] = 1``.

    Flags, environment variables, file keys, help texts and checks all come from this.
    """

    help: str
    low: float | None = None
    """The least it may be."""
    high: float | None = None
    """The most it may be."""
    above: float | None = None
    """What it must be more than."""
    choices: tuple[str, ...] = ()
    flag: str | None = None
    """The flag's name, and the environment variable's, where the field's own would say too little."""
    positional: bool = False
    """Its value stands on the command line without a flag."""
    secret: bool = False
    """Its value is shown nowhere."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One option: a field and what is written about it."""

    name: str
    kind: Any
    """int, float, bool, str, Path, or tuple for a list of texts."""
    about: About
    default: Any
    """MISSING where there is none."""
    optional: bool
    """None may stand for "not set"."""

    @property
    def parameter(self) -> str:
        """As the command line's functions call it."""
        return self.about.flag or self.name

    @property
    def flag(self) -> str:
        return self.parameter.upper() if self.about.positional else "--" + self.parameter.replace("_", "-")

    @property
    def off(self) -> str:
        """The flag that sets it to false."""
        return f"--no-{self.flag[2:]}"

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return f"PACELINE_{self.parameter.upper()}"

    @property
    def allowed(self) -> str:
        """The values that it may have, in words."""
        about, kind = self.about, KINDS[self.kind]
        if about.choices:
            return f"one of {', '.join(about.choices)}"
        if about.low is not None and about.high is not None:
            return f"{kind} in [{about.low}, {about.high}]"
        bounds = {"of at least": about.low, "of at most": about.high, "above": about.above}
        return " ".join([kind, *(f"{word} {bound}" for word, bound in bounds.items() if bound is not None)])


_settings: dict[type[Any], Mapping[str, Setting]] = {}


def settings_of(kind: type[Any]) -> Mapping[str, Setting]:
    """The options of a dataclass by field name, in their order; a field that holds another dataclass is none.

    Raises:
        TypeError: a field has no ``About``.
    """
    if kind not in _settings:
        _settings[kind] = _read(kind)
    return _settings[kind]


def _read(kind: type[Any]) -> dict[str, Setting]:
    hints = get_type_hints(kind, include_extras=True)
    settings = {}
    for item in fields(kind):
        hint, *written = get_args(hints[item.name]) if hasattr(hints[item.name], "__metadata__") else [hints[item.name]]
        members = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        plain = [one for one in members if one is not NoneType]
        if any(is_dataclass(one) for one in plain):
            continue
        about = next((one for one in written if isinstance(one, About)), None)
        if about is None:
            raise TypeError(f'{kind.__name__}.{item.name} needs an About: Annotated[..., About("what it is")]')
        default = item.default if item.default_factory is MISSING else item.default_factory()
        settings[item.name] = Setting(
            item.name, get_origin(plain[0]) or plain[0], about, default, optional=len(plain) < len(members)
        )
    return settings


def check_fields(config: Any) -> None:
    """Every option of a config has its type and lies within its bounds; names of parts are checked by their registry.

    Raises:
        ConfigError: naming the field and what it may be.
    """
    for name, setting in settings_of(type(config)).items():
        value = getattr(config, name)
        if not (_fits(setting, value) or (value is None and setting.optional)):
            allowed = f"{setting.allowed} or None" if setting.optional else setting.allowed
            raise ConfigError(f"{name} must be {allowed}, got {shown(value)}\n{_instead(setting, value)}")


def _instead(setting: Setting, value: Any) -> str:
    """The nearest value that the option may have, else its default."""
    about, nearest = setting.about, value
    if setting.kind in (int, float) and isinstance(value, int | float) and not isinstance(value, bool):
        nearest = value if about.low is None else max(value, about.low)
        nearest = nearest if about.high is None else min(nearest, about.high)
        nearest = setting.kind(nearest) if abs(nearest) < math.inf else nearest
    if _fits(setting, nearest):
        return f"Set {setting.name} to {nearest}."
    if setting.optional or setting.default is not MISSING:
        return f"Leave {setting.name} out, or set it to {setting.allowed}."
    return f"Set {setting.name} to {setting.allowed}."


def checked(setting: Setting, value: Any, where: str, fix: str = "Correct it.") -> Any:
    """A flag's or a file's value as the field wants it.

    Raises:
        ConfigError: naming ``where`` it stands and what would be accepted.
    """
    if setting.kind is tuple and isinstance(value, str | list):
        value = (value,) if isinstance(value, str) else tuple(value)
    if setting.kind is Path and isinstance(value, str):
        value = Path(value)
    if not _fits(setting, value):
        got = "something else" if setting.about.secret else shown(value)
        raise ConfigError(f"{where} must be {setting.allowed}, got {got}\n{fix}")
    return float(value) if setting.kind is float else value


def parsed(setting: Setting, text: str, where: str, fix: str = "Correct it.") -> Any:
    """The value that an environment variable spells; a list of texts is separated by commas.

    Raises:
        ConfigError: as ``checked``.
    """
    value: Any = text
    try:
        if setting.kind in (int, float):
            value = setting.kind(text)
        elif setting.kind is bool:
            value = WORDS.get(text.strip().lower(), text)
        elif setting.kind is tuple:
            value = [one.strip() for one in text.split(",") if one.strip()]
    except ValueError:
        pass  # the text itself is refused below, with what would be accepted
    return checked(setting, value, where, fix)


def _fits(setting: Setting, value: Any) -> bool:
    kind, about = setting.kind, setting.about
    accepted = (int, float) if kind is float else kind
    if kind is tuple:
        return isinstance(value, tuple) and all(isinstance(one, str) for one in value)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        return False
    if kind in (int, float):
        low, high = (-math.inf if about.low is None else about.low), (math.inf if about.high is None else about.high)
        # Comparisons with NaN are false; an infinity is no number that an option could have.
        inside = low <= value <= high and abs(value) < math.inf
        return inside and (about.above is None or value > about.above)
    return not about.choices or value in about.choices
