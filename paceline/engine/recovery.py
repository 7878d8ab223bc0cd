"""Rebuilds an engine's books after an exception cut a change of them short, wherever it came."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar


class Recoverable(Protocol):
    """An engine, as far as this room knows it."""

    torn: bool

    def recover(self) -> None: ...


P = ParamSpec("P")
R = TypeVar("R")
E = TypeVar("E", bound=Recoverable)


def recovering(change: Callable[Concatenate[E, P], R]) -> Callable[Concatenate[E, P], R]:
    """Has books be whole before a change, and after it too, even if Ctrl-C or a lack of memory cuts it short.

    If recovering is cut short as well, the next change begins with it.
    """

    @wraps(change)
    def changed(self: E, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if self.torn:
            self.recover()
        self.torn = True
        try:
            result = change(self, *args, **kwargs)
        except BaseException:
            self.recover()
            self.torn = False
            raise
        self.torn = False
        return result

    return changed
