"""Waiting for what other threads and processes do: long enough for a busy machine, and not a moment longer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

PATIENCE = 60.0
"""Seconds after which something that should happen soon is taken for never."""


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.005)


def gone(pid: int) -> bool:
    """Whether there is no such process any more; one that nobody has waited for still counts."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False
