"""A name-to-part table: the only place where Paceline chooses by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from paceline.core.errors import ConfigError, shown

Part = TypeVar("Part")


class Registry(Generic[Part]):
    """Parts of one kind by name; adding a part is one file and one line.

    >>> policies: Registry[str] = Registry("scheduling policy")
    >>> policies.add("fcfs")("first come, first served")
    'first come, first served'
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: dict[str, Part] = {}

    def add(self, name: str) -> Callable[[Part], Part]:
        """Decorator that files a part under ``name``."""

        def register(part: Part) -> Part:
            if name in self._parts:
                raise ConfigError(f"{self.kind} {name!r} is registered twice")
            self._parts[name] = part
            return part

        return register

    def __getitem__(self, name: str) -> Part:
        if not isinstance(name, str) or name not in self._parts:
            raise ConfigError(f"unknown {self.kind} {shown(name)}\nChoose one of: {', '.join(sorted(self._parts))}.")
        return self._parts[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)
