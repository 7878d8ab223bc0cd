"""Knows where the native library is, which of its levels runs here, and why there is none; nothing of what it computes.

Loading is lazy and never fails: without a compiler at installation there is no library, and ``reason`` says so.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from paceline.core.errors import ConfigError, PacelineError

INTERFACE_VERSION = 13
VARIABLE = "PACELINE_KERNELS"
"""Names the widest level to use; "off" means none."""
OFF = "off"
PATH = Path(__file__).with_name("_native.so")
CHECKOUT = PATH.parents[3]
"""Where ``setup.py`` lies, if this is a checkout."""


class NativeUnavailableError(PacelineError):
    """A native kernel was called where there are none."""


@dataclass(frozen=True, slots=True)
class Absence:
    """Why there are no native kernels, and what to do about it."""

    cause: str
    fix: str


@dataclass(frozen=True, slots=True)
class Library:
    """A loaded library and its levels, narrow ones first."""

    handle: ctypes.CDLL
    names: tuple[str, ...]
    supported: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Chosen:
    """What calls go to."""

    library: Library
    index: int


def levels() -> list[str]:
    """The levels that this processor can run, narrow ones first; none without the library."""
    found = _library()
    if isinstance(found, Absence):
        return []
    return [name for name, supported in zip(found.names, found.supported, strict=True) if supported]


def level() -> str | None:
    """The level that calls go to; None where there are no native kernels.

    Raises:
        ConfigError: ``PACELINE_KERNELS`` names no level.
    """
    found = _chosen()
    return None if isinstance(found, Absence) else found.library.names[found.index]


def reason() -> Absence | None:
    """Why there are no native kernels; None if there are."""
    found = _chosen()
    return found if isinstance(found, Absence) else None


def select(name: str | None) -> None:
    """From now on calls go to ``name`` or the widest supported level below it; None: as ``PACELINE_KERNELS`` says.

    Raises:
        ConfigError: there is no such level.
    """
    _selected[:] = [] if name is None else [name]
    _chosen.cache_clear()
    _chosen()


def reload() -> None:
    """Forgets what was found, so that the next call looks again."""
    _library.cache_clear()
    select(None)


def require() -> Chosen:
    """Raises:
    NativeUnavailableError: there are no native kernels.
    """
    found = _chosen()
    if isinstance(found, Absence):
        raise NativeUnavailableError(f"{found.cause}\n{found.fix}")
    return found


def _how_to_build() -> str:
    if all((CHECKOUT / name).is_file() for name in ("setup.py", "pyproject.toml")):
        return f"Build them where there is a C++ compiler: cd {CHECKOUT} && python setup.py build_ext --inplace"
    return "Install paceline again where there is a C++ compiler: pip install --force-reinstall --no-deps paceline"


_selected: list[str] = []


@cache
def _library() -> Library | Absence:
    if not PATH.is_file():
        return Absence("the native kernels were not built", _how_to_build())
    try:
        handle = ctypes.CDLL(str(PATH))
        version = handle.paceline_interface_version()
    except (OSError, AttributeError) as error:
        return Absence(f"the native kernels cannot be loaded: {error}", _how_to_build())
    if version != INTERFACE_VERSION:
        return Absence(f"the native kernels have interface {version}, not {INTERFACE_VERSION}", _how_to_build())
    handle.paceline_level_name.argtypes = handle.paceline_level_supported.argtypes = [ctypes.c_int64]
    handle.paceline_level_name.restype = ctypes.c_char_p
    handle.paceline_run.argtypes = [*(ctypes.c_int64, ctypes.c_void_p) * 2, ctypes.c_void_p]
    handle.paceline_run.restype = ctypes.c_int64
    names: list[str] = []
    while (name := handle.paceline_level_name(len(names))) is not None:
        names.append(name.decode())
    supported = [bool(handle.paceline_level_supported(index)) for index in range(len(names))]
    return Library(handle, tuple(names), tuple(supported))


@cache
def _chosen() -> Chosen | Absence:
    wish = _selected[0] if _selected else os.environ.get(VARIABLE, "")
    if wish == OFF:
        return Absence(f"{VARIABLE}={OFF} turns the native kernels off", f"Unset {VARIABLE}.")
    found = _library()
    if isinstance(found, Absence):
        return found
    if wish and wish not in found.names:
        raise ConfigError(
            f"{VARIABLE}={wish} names no level of native kernels\nChoose one of: {', '.join((*found.names, OFF))}."
        )
    last = found.names.index(wish) if wish else len(found.names) - 1
    index = max((index for index in range(last + 1) if found.supported[index]), default=None)
    if index is None:
        return Absence("the native kernels were built for another kind of processor", _how_to_build())
    return Chosen(found, index)
