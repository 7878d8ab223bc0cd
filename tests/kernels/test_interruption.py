"""A flag that cuts short a list of ops: between two of them, on all threads at the same one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from paceline.core.interruption import Interruption, StepInterruptedError, check, current
from paceline.kernels.native import gather, region
from paceline.kernels.native.structures import Code
from tests.support.native import needs_library

pytestmark = needs_library
NUM_OPS, SETTER = 12, 4
ONES, FIRST = torch.ones(1, 64), torch.zeros(1, dtype=torch.int64)
"""Kept: the ops point to them."""


@contextmanager
def interruptible() -> Iterator[Interruption]:
    flag = current.flag = Interruption()
    flag.clear()
    try:
        yield flag
    finally:
        current.flag = None


def ops_that_set(flag: Interruption, setter: int | None) -> tuple[list[torch.Tensor], list[Any]]:
    """Ops that each write ones to a tensor of their own; one of them writes to the flag as well."""
    ones, index = ONES, FIRST
    written = [torch.zeros(1, 64) for _ in range(NUM_OPS)]
    plain: dict[str, Any] = {"scale": 1.0, "offset": 0, "add": False}
    steps = [(Code.GATHER, gather.arguments(ones, out, index, **plain)) for out in written]
    if setter is not None:
        memory = torch.from_numpy(flag._flag.view(np.float32)).view(1, 1)
        steps.insert(setter + 1, (Code.GATHER, gather.arguments(ones[:, :1], memory, index, **plain)))
    return written, steps


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_no_more_than_one_op_begins_after_the_flag_is_set(threads: int) -> None:
    for _ in range(50):
        with interruptible() as flag:
            written, steps = ops_that_set(flag, SETTER)
            with pytest.raises(StepInterruptedError):
                region.run(steps, num_threads=threads)
        ran = [bool(out.any()) for out in written]
        assert ran[: SETTER + 1] == [True] * (SETTER + 1)
        assert not any(ran[SETTER + 2 :])
        assert all(out.all() for out, whole in zip(written, ran, strict=True) if whole)
        assert threads > 1 or not ran[SETTER + 1]


def test_a_flag_that_was_set_before_lets_nothing_run() -> None:
    with interruptible() as flag:
        written, steps = ops_that_set(flag, None)
        flag.set()
        with pytest.raises(StepInterruptedError):
            region.run(steps)
        with pytest.raises(StepInterruptedError):
            check()
        assert not any(bool(out.any()) for out in written)
        flag.clear()
        region.run(steps)
        check()
    assert all(bool(out.all()) for out in written)


def test_a_flag_of_another_thread_cuts_nothing_short() -> None:
    flag = Interruption()
    flag.set()
    assert gather.gather(torch.ones(3, 4), torch.tensor([0, 2])).all()
