"""Knows how memory is read natively and thrown away, which shows how fast it can be read; of what it holds, nothing."""

from __future__ import annotations

import torch

from paceline.kernels.native import region, structures
from paceline.kernels.native.checks import check_apart, check_shape, check_tensor, check_vector
from paceline.kernels.native.structures import Code, pointer

UNIT = 32
"""Words of which a whole number is read."""


def read_sum(words: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Reads i32[N] once and returns the sum, i32[1], which wraps around; N is a multiple of ``UNIT``.

    Raises:
        TypeError, ValueError: tensors that do not fit.
        NativeUnavailableError: there are no native kernels.
    """
    check_vector("words", words, words.shape[0] // UNIT * UNIT if words.dim() else 0, dtype=torch.int32)
    total = torch.empty(1, dtype=torch.int32) if out is None else out
    check_shape("out", check_tensor("out", total, dtypes=[torch.int32]), [1])
    check_apart("out", total, words=words)
    region.run([(Code.READ, structures.ReadArgs(pointer(words), words.nbytes, pointer(total)))])
    return total
