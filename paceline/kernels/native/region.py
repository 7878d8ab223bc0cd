"""Knows how steps are handed to the native library; the wrappers of the kernels check what is in them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from paceline.core.interruption import StepInterruptedError, current
from paceline.kernels.native.library import require
from paceline.kernels.native.structures import Code, NativeStatus, Operation

observers: list[Callable[[Sequence[tuple[int, int]]], None]] = []
"""Each is called after every native call, on its thread, with the code of each op and the address of its struct."""


FEW = 2**15
"""Logits that one thread is done with before another one would have woken up."""


class Watch(Protocol):
    def start(self) -> None: ...

    def stop(self) -> None: ...


watches: list[Watch] = []
"""Each is started before every native call and stopped after it, on its thread."""


def run(steps: Sequence[tuple[Code, ctypes.Structure]], *, num_threads: int | None = None) -> None:
    """Runs steps in order in one parallel region, of as many threads as torch uses, or ``num_threads``.

    Their arguments must be sound.

    Raises:
        NativeUnavailableError: there are no native kernels.
        MemoryError: there was none for intermediate results.
    """
    operations = (Operation * len(steps))(*(Operation(code, ctypes.addressof(arguments)) for code, arguments in steps))
    submit(operations, num_threads=num_threads)


def submit(operations: ctypes.Array[Operation], *, num_threads: int | None = None) -> None:
    """As ``run``, for ops that exist already; on ``num_threads``, if they should be fewer.

    Raises:
        StepInterruptedError: ``current.flag`` was set; each op has run as a whole or not at all.
    """
    chosen, flag = require(), current.flag
    threads = torch.get_num_threads() if num_threads is None else num_threads
    for watch in watches:
        watch.start()
    status = chosen.library.handle.paceline_run(
        chosen.index, operations, len(operations), threads, None if flag is None else flag.address
    )
    for watch in watches:
        watch.stop()
    if status == NativeStatus.NO_MEMORY:
        raise MemoryError("no memory for the intermediate results of native kernels")
    if status == NativeStatus.INTERRUPTED:
        raise StepInterruptedError
    assert status == NativeStatus.OK, NativeStatus(status)
    for observer in observers:
        observer([(operation.code, operation.arguments) for operation in operations])
