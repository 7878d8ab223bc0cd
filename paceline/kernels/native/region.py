"""Knows how steps are handed to the native library; the wrappers of the kernels check what is in them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from paceline.kernels.native.library import require
from paceline.kernels.native.structures import Code, Operation, Status


def run(steps: Sequence[tuple[Code, ctypes.Structure]]) -> None:
    """Runs steps in order in one parallel region, of as many threads as torch uses. Their arguments must be sound.

    Raises:
        NativeUnavailableError: there are no native kernels.
        MemoryError: there was none for intermediate results.
    """
    chosen = require()
    operations = (Operation * len(steps))(*(Operation(code, ctypes.addressof(arguments)) for code, arguments in steps))
    threads = torch.get_num_threads()
    status = chosen.library.handle.paceline_run(chosen.index, operations, len(steps), threads)
    if status == Status.NO_MEMORY:
        raise MemoryError("no memory for the intermediate results of native kernels")
    assert status == Status.OK, Status(status)
