"""Levels of the native kernels, and the check that a row does not see the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from paceline.kernels.native import library

absence = library.reason()
needs_library = pytest.mark.skipif(absence is not None, reason="" if absence is None else absence.cause)
LEVELS = [pytest.param(name, marks=needs_library) for name in library.levels() or ["native"]]

Rows = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """NaN equals NaN, and zero does not equal minus zero."""
    integers = {2: torch.int16, 4: torch.int32}[left.element_size()]
    return left.shape == right.shape and torch.equal(
        left.contiguous().view(integers), right.contiguous().view(integers)
    )


def check_rows_are_alone(function: Rows, x: torch.Tensor, counts: range | list[int]) -> None:
    """The first n rows, every row by itself, and all in another order have the bits that they have together."""
    together = function(x)
    for count in counts:
        assert same_bits(function(x[:count]), together[:count]), f"{count} rows"
    for row in range(0, len(x), 9):
        assert same_bits(function(x[row : row + 1]), together[row : row + 1]), f"row {row}"
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(5))
    assert same_bits(function(x[order]), together[order])
