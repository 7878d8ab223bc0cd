"""Knows how to keep a sandboxed Jinja template from running long or growing large."""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager

import jinja2
from jinja2.ext import Extension
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_CHARACTERS = 8_000_000
# "%099999d", "%*d"; "{:>99999}", "{:{width}}".
_WIDE_PERCENT = re.compile(r"%[^%a-zA-Z]*(?:[0-9]{5}|\*)")
_WIDE_BRACES = re.compile(r"\{[^{}]*(?:[0-9]{5}|:[^{}]*\{)")
_NUMBER_FILTERS = ("center", "indent", "wordwrap", "truncate", "batch", "slice")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Looks at the clock in every call and loop turn, and at the size of what operators build.

    Bounds hold for one thread within ``limits``. One operation between two looks is not interrupted, so operations
    that could be large by themselves (repetition, powers, padding) are refused by their arguments.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, *, extensions: Sequence[str | type[Extension]]) -> None:
        # Constants would be folded at compile time, outside the bounds.
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=extensions)
        self._bounds = threading.local()
        del self.globals["lipsum"]
        for name in (*_NUMBER_FILTERS, "format"):
            self.filters[name] = self._bounded_filter(self.filters[name])

    @contextmanager
    def limits(self, max_characters: int, seconds: float) -> Iterator[None]:
        self._bounds.size, self._bounds.end = max_characters, time.monotonic() + seconds
        try:
            yield
        finally:
            del self._bounds.size, self._bounds.end

    def tick(self) -> None:
        if time.monotonic() > self._bounds.end:
            raise jinja2.TemplateError("it takes too long")

    def join(self, *parts: object) -> str:
        """The ``~`` operator."""
        return self.concat(map(str, parts))

    def concat(self, parts: Iterable[str]) -> str:
        """What Jinja joins every buffer with: blocks, macros, the whole text."""
        kept, size = [], 0
        for part in parts:
            size += len(part)
            self._check_size(size)
            kept.append(part)
        return "".join(kept)

    def call(self, context: Context, obj: object, /, *args: object, **kwargs: object) -> object:
        self.tick()
        self._check_arguments(args, kwargs)
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        self.tick()
        if operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            self._check_size(len(left) + len(right))
        elif operator == "*":
            self._check_size(_extent(left) * _extent(right))
        elif operator == "**":
            self._check_size(left.bit_length() * abs(right) if isinstance(left, int) and isinstance(right, int) else 0)
        elif operator == "%" and isinstance(left, str):
            self._check_format(_WIDE_PERCENT, left)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: object) -> Callable[..., str] | None:
        owner = getattr(value, "__self__", None)
        if isinstance(owner, str) and getattr(value, "__name__", "") in ("format", "format_map"):
            self._check_format(_WIDE_BRACES, owner)
        return super().wrap_str_format(value)

    def _check_size(self, size: int) -> None:
        if size > self._bounds.size:
            raise jinja2.TemplateError("it makes too long a text")

    def _check_format(self, wide: re.Pattern[str], form: str) -> None:
        if wide.search(form):
            raise jinja2.TemplateError("it makes too long a text")

    def _check_arguments(self, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, int):
                self._check_size(abs(value))

    def _bounded_filter(self, original: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(original)  # Keeps Jinja's mark that says whether the filter takes the environment.
        def bounded(*args: object, **kwargs: object) -> object:
            self._check_arguments(args, kwargs)
            if original.__name__ == "do_format":
                self._check_format(_WIDE_PERCENT, str(args[0]))
            return original(*args, **kwargs)

        return bounded


def _extent(value: object) -> int:
    """How much a factor can multiply: a length, a count; 1 for other things."""
    if isinstance(value, Sized):
        return len(value)
    return abs(value) if isinstance(value, int) else 1
