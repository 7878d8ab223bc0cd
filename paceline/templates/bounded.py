"""Knows how to keep a sandboxed Jinja template from running long or growing large, in this process.

Every operation that may read or make much is counted before it happens, and what has no bound here raises
``OutsideError``: filters, tests, methods and constructs that are not listed, whatever they are. One operation is not
interrupted; its time grows no faster than what it reads and makes, which is bounded.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import jinja2
from jinja2 import Template, pass_context
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from paceline.templates.budget import ITEM, Budget, OutsideError
from paceline.templates.filters import bounded_filters, bounded_tests
from paceline.templates.language import OPTIONS, add_names
from paceline.templates.methods import SIMPLE, simple_key, spend_method
from paceline.templates.syntax import COMPARE, JOIN, KEY, SLICE, TICK, Instrument

MAX_BITS = 4096
"""Of a number that arithmetic makes."""
MAX_SOURCE = 200_000
"""Characters of a template that is compiled here."""
MAX_TOLD = 1000
"""Characters of a message or of a format of times."""
OF_JINJA = ("_loop_vars", "_block_vars")
"""What generated code adds to the arguments of calls."""
COMPARED: dict[str, Callable[[Any, Any], object]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
    "in": lambda left, right: left in right,
    "notin": lambda left, right: left not in right,
}


@pass_context
def _written(context: Context, value: object) -> str:
    environment = context.environment
    assert isinstance(environment, BoundedEnvironment)
    return environment.text(value)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Renders within a budget, which holds for one thread while ``limits`` is open."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        # Constants would be folded at compile time, outside the bounds; so would what is written, but for its context.
        super().__init__(**OPTIONS, optimized=False, finalize=_written)
        self._local = threading.local()
        add_names(self)
        self.filters = bounded_filters(self, self.filters)
        self.tests = bounded_tests(self, self.tests)
        self.filters |= {TICK: self._tick, JOIN: self._join, SLICE: self._slice, KEY: simple_key}
        self.filters |= {COMPARE + name: self._comparison(name) for name in COMPARED}
        self._makers: tuple[object, ...] = (self.globals["range"], self.globals["dict"], self.globals["namespace"])
        self._tellers = (self.globals["raise_exception"], self.globals["strftime_now"])

    def bounded(self, source: str) -> Template:
        """Compiles a template.

        Raises:
            OutsideError: it has a construct without a bound.
        """
        if len(source) > MAX_SOURCE:
            raise OutsideError
        code = self.compile(Instrument().visit(self.parse(source)))
        return Template.from_code(self, code, self.make_globals(None))

    @contextmanager
    def limits(self, max_characters: int, seconds: float) -> Iterator[None]:
        self._local.budget = Budget(max_characters, seconds)
        try:
            yield
        finally:
            del self._local.budget

    @property
    def budget(self) -> Budget:
        budget: Budget = self._local.budget
        return budget

    def text(self, value: object) -> str:
        """``str``, counted."""
        if not isinstance(value, str):
            self.budget.spend(self.budget.weigh(value))
            value = str(value)
        self.budget.spend(len(value))
        return value

    def concat(self, parts: Iterable[str]) -> str:
        """What Jinja joins every buffer with: blocks, macros, the whole text."""
        kept, size = [], 0
        for part in parts:
            size += len(part)
            if size > self.budget.max_size:
                break
            kept.append(part)
        self.budget.spend(size)
        return "".join(kept)

    def call(self, context: Context, obj: object, /, *args: object, **kwargs: object) -> object:
        self.budget.tick()
        given = {name: value for name, value in kwargs.items() if name not in OF_JINJA}
        if any(obj is maker for maker in self._makers):
            if not all(isinstance(arg, int | dict | list | tuple) for arg in args):
                raise OutsideError
            self.budget.spend(self.budget.weigh(*args))
        elif any(obj is teller for teller in self._tellers):
            self._check_teller((*args, *given.values()))
        elif isinstance(obj, Macro | Undefined) or _is_cycle(obj):
            pass
        else:
            spend_method(self.budget, obj, args, given)
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        self.budget.tick()
        if isinstance(left, int | float) and isinstance(right, int | float):
            self._check_numbers(operator, left, right)
        elif operator == "+" and isinstance(left, str | list | tuple):
            self.budget.spend(_extent(left) + _extent(right))
        elif operator == "*" and isinstance(left, str | list | tuple | int):
            self.budget.spend(_extent(left) * _extent(right))
        elif not isinstance(left, list | tuple | dict | int | float | None | Undefined):
            raise OutsideError  # A format, or sets of keys.
        return super().call_binop(context, operator, left, right)

    def getitem(self, obj: object, argument: object) -> object:
        return super().getitem(obj, simple_key(argument))

    def check_comparison(self, left: object, right: object, *, contains: bool) -> None:
        """Before two values are compared, or the left is looked for in the right."""
        self.budget.tick()
        if isinstance(left, SIMPLE) and (isinstance(right, SIMPLE) or (contains and isinstance(right, dict))):
            return
        if contains and not isinstance(right, list | tuple):
            raise OutsideError
        self.budget.spend(self.budget.weigh(left, right))

    def _comparison(self, name: str) -> Callable[[object, object], object]:
        compare, contains = COMPARED[name], name in ("in", "notin")

        def compared(left: object, right: object) -> object:
            self.check_comparison(left, right, contains=contains)
            return compare(left, right)

        return compared

    def _tick(self, _: object) -> bool:
        self.budget.tick()
        return True

    def _join(self, *parts: object) -> str:
        return self.concat(map(self.text, parts))

    def _slice(self, value: Any, start: object, stop: object, step: object) -> object:
        part: object = value[slice(start, stop, step)]
        self.budget.spend(_extent(part))
        return part

    def _check_numbers(self, operator: str, left: float, right: float) -> None:
        bits = [value.bit_length() for value in (left, right) if isinstance(value, int)]
        if sum(bits) > MAX_BITS or (operator == "**" and len(bits) == 2 and bits[0] * abs(right) > MAX_BITS):
            raise jinja2.TemplateError("it makes too large a number")

    def _check_teller(self, args: tuple[object, ...]) -> None:
        """Of ``raise_exception`` and ``strftime_now``, whose formats may have widths."""
        for text in map(self.text, args):
            if len(text) > MAX_TOLD:
                raise OutsideError


def _is_cycle(obj: object) -> bool:
    owner = getattr(obj, "__self__", None)
    return isinstance(owner, LoopContext) and getattr(obj, "__name__", "") == "cycle"


def _extent(value: object) -> int:
    """What a sequence weighs without what its items hold; as a factor, how often it repeats; 0 for other things."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list | tuple):
        return ITEM * len(value)
    return abs(value) if isinstance(value, int) else 0
