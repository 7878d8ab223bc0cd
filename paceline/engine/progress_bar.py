"""Knows how a long call shows in a terminal how many of its prompts are done."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from paceline.core.request import Group

DELAY_SECONDS = 1.0
"""Calls that are done within that time show no bar."""
EVERY_SECONDS = 0.1
Update = Callable[[], None]


@contextmanager
def progress_bar(groups: Sequence[Group], wanted: bool | Callable[..., Any]) -> Iterator[Update]:
    """Gives what is called after each step of a call.

    Args:
        wanted: True shows a bar on standard error if that is a terminal and there are several prompts; what else can
            be called is used in place of the class ``tqdm``, wherever the output goes.
    """
    if not callable(wanted) and (not wanted or len(groups) == 1 or not _on_terminal()):
        yield _nothing
        return
    bar = _begin(len(groups), wanted)
    done, next_look = 0, 0.0

    def update(*, last: bool = False) -> None:
        nonlocal done, next_look
        now = time.monotonic()
        if last or now >= next_look:  # counting costs more than a step of a small model
            next_look = now + EVERY_SECONDS
            before, done = done, sum(group.finished for group in groups)
            bar.update(done - before)

    try:
        yield update
        update(last=True)
    finally:
        bar.close()


def _begin(count: int, wanted: bool | Callable[..., Any]) -> Any:
    if callable(wanted):
        return wanted(total=count, desc="prompts")
    return tqdm(total=count, desc="prompts", unit="prompt", delay=DELAY_SECONDS, dynamic_ncols=True)


def _on_terminal() -> bool:
    """Standard error may be closed, or something that a program put in its place."""
    try:
        return not os.environ.get("PACELINE_QUIET") and sys.stderr.isatty()
    except (AttributeError, ValueError):
        return False


def _nothing() -> None:
    pass
