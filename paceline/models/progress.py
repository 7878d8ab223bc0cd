"""Knows how people see that weights are being read: a bar on a terminal, lines elsewhere, nothing if it is quick."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from paceline.core.settings import WORDS

NOTICEABLE_SECONDS = 1.5
LINE_SECONDS = 10.0
QUIET_VARIABLE = "PACELINE_QUIET"


class LoadProgress:
    """Hears how many bytes were read; shows nothing before that has taken a noticeable time."""

    def __init__(
        self,
        total: int,
        file: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        doing: str = "loading",
    ) -> None:
        self._doing = doing
        self._total, self._file, self._clock = total, file or sys.stderr, clock
        self._done = 0
        self._next = clock() + NOTICEABLE_SECONDS
        """When there is something to show again."""
        self._bar: tuple[Progress, TaskID] | None = None

    def advance(self, num_bytes: int) -> None:
        self._done += num_bytes
        if self._bar is not None:
            bar, task = self._bar
            bar.update(task, completed=self._done)
        elif self._clock() >= self._next:
            self._show()

    def _show(self) -> None:
        if self._file.isatty():
            columns = (TextColumn(self._doing), BarColumn(), DownloadColumn(), TimeRemainingColumn())
            bar = Progress(*columns, console=Console(file=self._file), transient=True)
            bar.start()
            self._bar = bar, bar.add_task(self._doing, total=self._total, completed=self._done)
            return
        share = 100 * self._done / max(self._total, 1)
        print(f"{self._doing}: {share:.0f}% of {self._total / 1e9:.1f} GB", file=self._file, flush=True)
        self._next = self._clock() + LINE_SECONDS

    def stop(self) -> None:
        if self._bar is not None:
            self._bar[0].stop()


@contextmanager
def load_progress(total: int, doing: str = "loading") -> Iterator[Callable[[int], None]]:
    """Yields ``advance(bytes)``; PACELINE_QUIET shows nothing."""
    if WORDS.get(os.environ.get(QUIET_VARIABLE, "").lower(), False):
        yield lambda _num_bytes: None
        return
    progress = LoadProgress(total, doing=doing)
    try:
        yield progress.advance
    finally:
        progress.stop()
