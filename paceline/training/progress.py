"""Knows how a run tells where it is: a bar on a terminal, plain lines elsewhere, JSON lines for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import IO, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars


@dataclass(frozen=True, slots=True)
class Advance:
    """How far one stage of a run has come."""

    stage: str
    done: int
    total: int
    tokens_per_second: float
    seconds_left: float
    loss: float | None = None

    def __str__(self) -> str:
        loss = "" if self.loss is None else f"loss {self.loss:.4f}  "
        return f"{loss}{self.tokens_per_second:,.0f} tokens/s  {_duration(self.seconds_left)} left"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


class Progress(Protocol):
    """Hears of everything a run has to say."""

    def note(self, text: str) -> None: ...

    def advance(self, report: Advance) -> None: ...

    def result(self, metrics: Mapping[str, Any], lines: list[str]) -> None:
        """The figures at the end, and the same as lines for people."""

    def running(self) -> AbstractContextManager[Any]:
        """Around the whole run."""


class PlainProgress:
    def __init__(self, file: IO[str] | None = None) -> None:
        self.file = file or sys.stdout

    def note(self, text: str) -> None:
        print(text, file=self.file, flush=True)

    def advance(self, report: Advance) -> None:
        self.note(f"{report.stage} {report.done}/{report.total}  {report}")

    def result(self, metrics: Mapping[str, Any], lines: list[str]) -> None:  # noqa: ARG002
        self.note("\n".join(lines))

    def running(self) -> AbstractContextManager[Any]:
        return nullcontext()


class JsonProgress:
    """One object per line; ``event`` is note, advance or result."""

    def __init__(self, file: IO[str] | None = None) -> None:
        self.file = file or sys.stdout

    def _write(self, event: str, values: Mapping[str, Any]) -> None:
        print(json.dumps({"event": event, **values}, ensure_ascii=False), file=self.file, flush=True)

    def note(self, text: str) -> None:
        self._write("note", {"text": text})

    def advance(self, report: Advance) -> None:
        self._write("advance", asdict(report))

    def result(self, metrics: Mapping[str, Any], lines: list[str]) -> None:  # noqa: ARG002
        self._write("result", metrics)

    def running(self) -> AbstractContextManager[Any]:
        return nullcontext()


class TerminalProgress:
    """A bar per stage; notes scroll by above it."""

    def __init__(self, console: Console | None = None) -> None:
        out = console or Console(highlight=False)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
        )
        self.bars = Bars(*columns, TextColumn("{task.fields[detail]}"), console=out)
        self.tasks: dict[str, TaskID] = {}

    def note(self, text: str) -> None:
        self.bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def advance(self, report: Advance) -> None:
        if report.stage not in self.tasks:
            self.tasks[report.stage] = self.bars.add_task(report.stage, detail="")
        self.bars.update(
            self.tasks[report.stage], completed=report.done, total=report.total, detail=str(report), refresh=True
        )

    def result(self, metrics: Mapping[str, Any], lines: list[str]) -> None:  # noqa: ARG002
        self.bars.stop()
        self.note("\n".join(lines))

    def running(self) -> AbstractContextManager[Any]:
        return self.bars


def choose_progress(*, as_json: bool) -> Progress:
    if as_json:
        return JsonProgress()
    return TerminalProgress() if sys.stdout.isatty() else PlainProgress()
