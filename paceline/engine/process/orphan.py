"""Knows how a child learns that its parent is gone before it listens to it; imports nothing that takes long."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(descriptor: int) -> None:
    """Where the system can, at once, whatever this process does then; ``descriptor`` is its end of the link.

    Linux counts the end of the thread that started this process as the parent's.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    link = select.poll()
    link.register(descriptor, 0)  # only a hang-up is told
    if link.poll(0):  # it was gone before that was asked for
        os._exit(0)
