"""Raises an exception between any two statements, or byte codes, of the engine: as Ctrl-C or a lack of memory would."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import paceline

Statement = tuple[str, int]
"""File and line."""
ROOT = str(Path(paceline.__file__).parent)


def statement_of(function: Callable[..., Any]) -> Statement:
    """Its first statement."""
    code = inspect.unwrap(function).__code__
    return code.co_filename, sorted({line for _, _, line in code.co_lines() if line})[1]


class Interrupter:
    """Counts the events of a thread in the package's own code, of one statement or of all, and raises at one."""

    def __init__(
        self, at: int, error: BaseException | None, *, opcodes: bool = False, of: Statement | None = None
    ) -> None:
        self.at, self.error, self.opcodes, self.of = at, error, opcodes, of
        self.count = 0
        self.statements = Counter[Statement]()
        """How often each was reached, if no error is to be raised."""
        self.where: str | None = None
        """The statement before which it raised."""

    def _enter(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(ROOT):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = self.opcodes, not self.opcodes
        return self._see

    def _see(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if event == ("opcode" if self.opcodes else "line"):
            statement = frame.f_code.co_filename, frame.f_lineno
            self.count += self.of is None or self.of == statement
            if self.error is None:
                self.statements[statement] += 1
            elif self.of not in (None, statement):
                return self._see
            if self.count == self.at and self.error is not None:
                path = Path(frame.f_code.co_filename).relative_to(ROOT)
                self.where = f"{path}:{frame.f_lineno} in {frame.f_code.co_name}"
                raise self.error
        return self._see

    @contextmanager
    def watching(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(before)
