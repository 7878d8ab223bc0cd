"""Knows whether a change of several statements was cut short, so that what it changed may be half done."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar


class Torn(Protocol):
    """Whatever has books that must agree with each other."""

    torn: bool
    """An exception left a change half done; these books must be rebuilt before they are used."""


P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=Torn)


def whole(change: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Makes a method record that it was cut short: an interrupt may come between any two statements."""

    @wraps(change)
    def changed(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return change(self, *args, **kwargs)
        except BaseException:
            self.torn = True
            raise

    return changed
