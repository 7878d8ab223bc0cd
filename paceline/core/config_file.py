"""Knows how a TOML file is read, and how what is wrong with it is said."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from paceline.core.errors import ConfigError


def read_toml(path: Path, named_by: str = "--config") -> dict[str, Any]:
    """The file's content.

    Args:
        named_by: what to correct where the file cannot be read.

    Raises:
        ConfigError: naming the file.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})\nCorrect {named_by}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}\nSave the file as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML ({error})\nCorrect the file.") from None


def unknown_key(cause: str, key: str, known: Iterable[str]) -> ConfigError:
    """The error for a key that is none: the likeliest one that was meant, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(key, names, n=1)
    return ConfigError(f"{cause}\n" + (f"Did you mean {close[0]}?" if close else f"Choose from: {', '.join(names)}."))
