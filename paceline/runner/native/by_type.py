"""A table from module types to how they are recorded; the only place where a module's type decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from torch import nn

Record = TypeVar("Record")


class ByType(Generic[Record]):
    """How modules of each type are recorded."""

    def __init__(self) -> None:
        self._records: dict[type[nn.Module], Record] = {}

    def add(self, kind: type[nn.Module]) -> Callable[[Record], Record]:
        """Decorator that files a function under ``kind``."""

        def register(record: Record) -> Record:
            self._records[kind] = record
            return record

        return register

    def of(self, module: nn.Module) -> Record:
        """
        Raises:
            TypeError: its type has no native form.
        """
        if type(module) not in self._records:
            raise TypeError(f"{type(module).__name__} has no native form")
        return self._records[type(module)]

    def __contains__(self, module: nn.Module) -> bool:
        return type(module) in self._records
