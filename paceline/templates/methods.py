"""Knows which methods of text, lists and maps a template may call in bounds, and what each may read and make."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping

from jinja2.runtime import Undefined

from paceline.templates.budget import ITEM, Budget, OutsideError

SHORT = 64
"""Most characters of what a method looks for or strips where it may look again at each character of the text."""
SIMPLE = (str, int, float, type(None), Undefined)
"""Keys that are hashed and compared at once."""
Spend = Callable[[Budget, str, tuple[object, ...]], None]

_READS = (
    "lower upper casefold capitalize swapcase startswith endswith find index count removeprefix removesuffix partition "
    "isalnum isalpha isascii isdecimal isdigit isidentifier islower isnumeric isspace istitle isupper title"
)


def _reads(budget: Budget, text: str, args: tuple[object, ...]) -> None:
    budget.spend(len(text) + budget.weigh(*args))


def _looks_back(budget: Budget, text: str, args: tuple[object, ...]) -> None:
    """What Python does in time that may grow as text times argument."""
    if any(isinstance(arg, str) and len(arg) > SHORT for arg in args):
        raise OutsideError
    budget.spend(len(text))


def _splits(budget: Budget, text: str, args: tuple[object, ...]) -> None:
    _looks_back(budget, text, args)
    between = args[0] if args else None
    pieces = text.count(between) if isinstance(between, str) and between else len(text) // 2
    budget.spend(len(text) + ITEM * pieces)


def _replaces(budget: Budget, text: str, args: tuple[object, ...]) -> None:
    if len(args) < 2 or not isinstance(args[0], str) or not isinstance(args[1], str):
        raise OutsideError
    budget.spend(len(text) + len(args[0]) + len(args[1]) * text.count(args[0]))


def _joins(budget: Budget, text: str, args: tuple[object, ...]) -> None:
    if len(args) != 1 or not isinstance(args[0], str | list | tuple):
        raise OutsideError
    budget.spend(budget.weigh(args[0], each=len(text)))


TEXT: dict[str, Spend] = {
    **dict.fromkeys(_READS.split(), _reads),
    **dict.fromkeys(("strip", "lstrip", "rstrip", "rfind", "rindex", "rpartition"), _looks_back),
    **dict.fromkeys(("split", "rsplit", "splitlines"), _splits),
    "replace": _replaces,
    "join": _joins,
}


def spend_method(budget: Budget, method: object, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
    """Before ``method`` is called.

    Raises:
        OutsideError: it is none of those that have a bound, or not with these arguments.
    """
    owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    if kwargs or not callable(method) or any(isinstance(arg, Generator) for arg in args):
        raise OutsideError
    if isinstance(owner, str) and name in TEXT:
        TEXT[name](budget, owner, args)
    elif isinstance(owner, dict) and name in ("get", "items", "keys", "values", "copy"):
        simple_key(args[0] if args else None)
        budget.spend(ITEM * len(owner) if name == "copy" else 0)
    elif isinstance(owner, list | tuple) and name in ("index", "count", "copy"):
        budget.spend(budget.weigh(owner, *args))
    else:
        raise OutsideError


def simple_key(value: object) -> object:
    """The key of a map: hashing others may take as long as what they hold."""
    if not isinstance(value, SIMPLE):
        raise OutsideError
    return value
