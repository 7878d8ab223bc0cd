"""Knows how computing that nobody waits for any more is cut short: by a flag that kernels look at between two ops."""

from __future__ import annotations

import mmap
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

BEHIND = 64
"""Where in its memory nobody looks for the flag."""


class StepInterruptedError(BaseException):
    """A step was cut short between two ops, so that nothing has happened.

    No ``Exception``, as Ctrl-C is none: whoever handles faults of requests and drafters must not take it for one.
    """


class Interruption:
    """A flag that any thread may set while another one computes, and that signals can set while the main thread does.

    Signal handlers of Python wait until native code returns. At once Python only writes the signal's number to a file
    of one's choice (``signal.set_wakeup_fd``), so the flag lies in a file in memory, where the system has such files.
    """

    def __init__(self) -> None:
        self._file: int | None = None
        self._lent = False
        """Python may know the file as the one for signals."""
        memory = bytearray(BEHIND)
        if hasattr(os, "memfd_create"):
            self._file = os.memfd_create("paceline-interruption")
            os.set_blocking(self._file, False)
            os.truncate(self._file, mmap.PAGESIZE)
            self._flag = np.frombuffer(mmap.mmap(self._file, mmap.PAGESIZE), dtype=np.int32, count=1)
        else:
            self._flag = np.frombuffer(memory, dtype=np.int32, count=1)
        self.address = int(self._flag.ctypes.data)
        """Of the int32, which is nonzero once it is set."""

    def __del__(self) -> None:
        if self._lent and _on_main_thread():
            self._take_back()
        if self._file is not None and not self._lent:
            os.close(self._file)

    @property
    def is_set(self) -> bool:
        return bool(self._flag[0])

    def set(self) -> None:
        self._flag[0] = -1

    def clear(self) -> None:
        """A signal that ended nothing cuts short one step at most: the next one is left alone by signals."""
        signalled = self._flag[0] > 0
        if self._file is not None:
            os.lseek(self._file, BEHIND if signalled else 0, os.SEEK_SET)
        self._flag[0] = 0

    @contextmanager
    def set_by_signals(self) -> Iterator[None]:
        """Has signals set the flag, on the main thread and where nobody else is told of them that way."""
        if self._file is not None and _on_main_thread():
            self._lend(self._file)
        try:
            yield
        finally:
            if self._lent:
                self._take_back()

    def _lend(self, file: int) -> None:
        self._lent = True
        before = signal.set_wakeup_fd(file, warn_on_full_buffer=False)
        if before not in (-1, file):
            signal.set_wakeup_fd(before)

    def _take_back(self) -> None:
        now = signal.set_wakeup_fd(-1)
        if now not in (-1, self._file):
            signal.set_wakeup_fd(now)
        self._lent = False


def _on_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


class _Current(threading.local):
    flag: Interruption | None = None


current = _Current()
"""The flag that cuts short what this thread computes, if it may be cut short."""


def check() -> None:
    """
    Raises:
        StepInterruptedError: this thread shall compute no further.
    """
    flag = current.flag
    if flag is not None and flag.is_set:
        raise StepInterruptedError
