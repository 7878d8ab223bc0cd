"""Knows which of Jinja's filters and tests have a bound, and what each may read and make."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, NamedTuple, Protocol

from paceline.templates.budget import ITEM, Budget, OutsideError
from paceline.templates.methods import SHORT

MAX_NUMERAL = 4000
"""Characters of a text that becomes a number."""


class Counting(Protocol):
    """What of the environment counting needs."""

    @property
    def budget(self) -> Budget: ...
    def text(self, value: object) -> str: ...
    def concat(self, parts: Iterable[str]) -> str: ...
    def check_comparison(self, left: object, right: object, *, contains: bool) -> None: ...


class Use(NamedTuple):
    """A filter or test, about to be called."""

    environment: Counting
    value: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def arg(self, name: str, default: object) -> Any:
        """The first further argument, also where it is named."""
        return self.kwargs.get(name, self.args[0] if self.args else default)


Check = Callable[[Use], Any]
"""Counts a use, and gives the value to go on with."""


def _free(use: Use) -> Any:
    """Takes a moment, or gives one item at a time."""
    return use.value


def _reads(use: Use) -> Any:
    """Makes a text of about the same length; further arguments are short."""
    for arg in (*use.args, *use.kwargs.values()):
        if isinstance(arg, Sized) and len(arg) > SHORT:
            raise OutsideError
    return use.environment.text(use.value)


def _splits(use: Use) -> Any:
    value = use.environment.text(use.value)
    use.environment.budget.spend(ITEM * len(value))
    return value


def _counted(use: Use) -> Any:
    budget = use.environment.budget
    if isinstance(use.value, Sized):
        budget.spend(ITEM * len(use.value))
        return use.value
    return list(_counting(budget, use.value)) if isinstance(use.value, Iterable) else use.value


def _counting(budget: Budget, values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        budget.spend(ITEM)
        yield value


def _sorts(use: Use) -> Any:
    """Compares what items hold, each a few times."""
    value, budget = _counted(use), use.environment.budget
    budget.spend(4 * budget.weigh(value))
    return value


def _replaces(use: Use) -> Any:
    value = use.environment.text(use.value)
    if len(use.args) < 2:
        raise OutsideError
    old, new = map(use.environment.text, use.args[:2])
    use.environment.budget.spend(len(value) + value.count(old) * len(new))
    return value


def _joins(use: Use) -> Any:
    value, budget = _counted(use), use.environment.budget
    budget.spend(budget.weigh(value, each=len(use.environment.text(use.arg("d", "")))))
    return value


def _indents(use: Use) -> Any:
    if not isinstance(use.value, str):
        raise OutsideError
    lines = len(use.value.splitlines()) + 1
    use.environment.budget.spend(len(use.value) + lines * short_width(use.arg("width", 4)))
    return use.value


def _numerals(use: Use) -> Any:
    if isinstance(use.value, str) and len(use.value) > MAX_NUMERAL:
        raise OutsideError
    return use.value


def _only_numbers(use: Use) -> Any:
    if not isinstance(use.value, int | float):
        raise OutsideError  # "%" of a text is a format.
    return use.value


def _compares(use: Use) -> Any:
    for arg in use.args:
        use.environment.check_comparison(use.value, arg, contains=False)
    return use.value


def _contains(use: Use) -> Any:
    for arg in use.args:
        use.environment.check_comparison(use.value, arg, contains=True)
    return use.value


def short_width(value: object) -> int:
    """Of an indentation, which is a number of spaces or a text."""
    width = len(value) if isinstance(value, str) else value
    if not isinstance(width, int) or width > SHORT:
        raise OutsideError
    return width


_LAZY = "abs count d default first items last length map reject rejectattr reverse select selectattr"
FILTERS: dict[str, Check] = {
    **dict.fromkeys(_LAZY.split(), _free),
    **dict.fromkeys(["capitalize", "lower", "safe", "string", "trim", "upper"], _reads),
    **dict.fromkeys(["dictsort", "max", "min", "sort", "unique"], _sorts),
    **dict.fromkeys(["float", "int"], _numerals),
    "title": _splits,
    "list": _counted,
    "replace": _replaces,
    "join": _joins,
    "indent": _indents,
}
_KINDS = (
    "boolean callable defined escaped false filter float integer iterable mapping none number sameas sequence string "
    "test true undefined"
)
_COMPARISONS = "!= < <= == > >= eq equalto ge greaterthan gt le lessthan lt ne"
TESTS: dict[str, Check] = {
    **dict.fromkeys(_KINDS.split(), _free),
    **dict.fromkeys(_COMPARISONS.split(), _compares),
    **dict.fromkeys(["divisibleby", "even", "odd"], _only_numbers),
    **dict.fromkeys(["lower", "upper"], _reads),
    "in": _contains,
}


def bounded_filters(environment: Counting, made: Mapping[str, Any]) -> dict[str, Any]:
    """Jinja's filters; those without a bound raise OutsideError when they are used."""
    found = {name: _bounded(environment, filter_, FILTERS.get(name)) for name, filter_ in made.items()}
    return found | {"tojson": _to_json(environment)}


def bounded_tests(environment: Counting, made: Mapping[str, Any]) -> dict[str, Any]:
    """Jinja's tests (``is defined``), likewise."""
    return {name: _bounded(environment, test, TESTS.get(name)) for name, test in made.items()}


def _bounded(environment: Counting, made: Callable[..., Any], check: Check | None) -> Callable[..., Any]:
    place = 1 if hasattr(made, "jinja_pass_arg") else 0

    @functools.wraps(made)  # Keeps Jinja's mark that says whether it takes the environment or the context.
    def bounded(*args: Any, **kwargs: Any) -> Any:
        environment.budget.tick()
        if check is None or len(args) <= place:
            raise OutsideError
        value = check(Use(environment, args[place], args[place + 1 :], kwargs))
        return made(*args[:place], value, *args[place + 1 :], **kwargs)

    return bounded


def _to_json(environment: Counting) -> Callable[..., str]:
    def bounded(value: Any, ensure_ascii: bool = False, indent: int | str | None = None, **options: Any) -> str:
        if not options.keys() <= {"separators", "sort_keys"}:
            raise OutsideError
        between = sum(map(short_width, options.get("separators") or ()))
        short_width(indent or 0)
        environment.budget.spend(environment.budget.weigh(value, each=between))
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, **options)
        # With an indentation it comes in pieces, whose length depends on how deep they lie.
        return environment.concat(encoder.iterencode(value) if indent is not None else [encoder.encode(value)])

    return bounded
