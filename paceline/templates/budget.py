"""Knows how much one rendering may still do, and how much a value weighs; nothing of Jinja's operations."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping

import jinja2
from jinja2.utils import Namespace

ITEM = 8
"""What an item of a container weighs beside its content; a character weighs 1."""
OBJECT = 64
"""What anything weighs that is neither text, number nor container."""
TIMES = 8
"""All operations of a rendering together may weigh so many times what one value may."""


class OutsideError(Exception):
    """The template does what has no bound here."""


class Budget:
    """What one rendering may still do."""

    def __init__(self, max_size: int, seconds: float) -> None:
        self.max_size = max_size
        self._left = TIMES * max_size
        self._end = time.monotonic() + seconds

    def tick(self) -> None:
        if time.monotonic() > self._end:
            raise jinja2.TemplateError("it takes too long")

    def spend(self, size: int) -> None:
        """Before an operation that reads or makes so much."""
        self.tick()
        self._left -= size
        if size > self.max_size or self._left < 0:
            raise jinja2.TemplateError("it makes too long a text")

    def weigh(self, *values: object, each: int = 0) -> int:
        """The weight of ``values``, an item weighing ``each`` more; counting stops beyond what one value may weigh."""
        return weight(values, self.max_size, ITEM + each)


def weight(values: Collection[object], most: int, item: int = ITEM) -> int:
    """How long a text of ``values`` is, about. What is contained twice counts twice, as it is written twice."""
    total, waiting = 0, list(values)
    while waiting and total <= most:
        value = waiting.pop()
        if isinstance(value, str):
            total += len(value)
        elif isinstance(value, int):
            total += ITEM + value.bit_length() // 3
        elif isinstance(value, Mapping | Namespace):
            parts = value if isinstance(value, Mapping) else _attributes(value)
            total += OBJECT + 2 * item * len(parts)
            waiting.extend(parts.keys())
            waiting.extend(parts.values())
        elif isinstance(value, Collection) and not isinstance(value, range):
            total += item * (1 + len(value))
            waiting.extend(value)
        else:
            total += OBJECT
    return total


def _attributes(namespace: Namespace) -> Mapping[str, object]:
    found: Mapping[str, object] = object.__getattribute__(namespace, "_Namespace__attrs")  # as a template names them
    return found
