"""Answers an unknown keyword with the option that means the same, the likeliest one, or all of them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import wraps
from typing import Any, TypeVar

from paceline.core.errors import UnknownFieldError, shown

Kind = TypeVar("Kind")


def instead(name: str, known: Iterable[str], elsewhere: Mapping[str, str]) -> str:
    """The second line of the error for ``name``; ``elsewhere`` tells of names that other programs have."""
    names = sorted(known)
    meant = elsewhere.get(name)
    if meant is not None:
        return f"Use {meant}."
    close = difflib.get_close_matches(name, names, n=1)
    return f"Did you mean {close[0]}?" if close else f"Choose from: {', '.join(names)}."


def naming_unknown_fields(elsewhere: Mapping[str, str]) -> Callable[[type[Kind]], type[Kind]]:
    """Has a dataclass refuse keywords that are no fields with an ``UnknownFieldError``."""

    def decorated(kind: type[Kind]) -> type[Kind]:
        initialise: Any = vars(kind)["__init__"]
        known = frozenset(item.name for item in fields(kind))  # type: ignore[arg-type]

        @wraps(initialise)
        def checked(self: Kind, *args: Any, **values: Any) -> None:
            for name, value in values.items():
                if name not in known:
                    cause = f"{kind.__name__} has no field {name}, got {shown(value)}"
                    raise UnknownFieldError(f"{cause}\n{instead(name, known, elsewhere)}", param=name)
            initialise(self, *args, **values)

        setattr(kind, "__init__", checked)  # noqa: B010, as mypy lets nobody assign to a method
        return kind

    return decorated
