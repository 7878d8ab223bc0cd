"""Knows how the native rotary embedding is called; ``paceline.kernels.reference.rotate`` is the same in torch."""

from __future__ import annotations

import torch

from paceline.kernels.native import region, structures
from paceline.kernels.native.checks import check_apart, check_rows, check_same_or_apart, output
from paceline.kernels.native.structures import Code, Matrix


def rotate(
    x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Turns channel pairs (i, i + R / 2) of heads [T, H, D] by their rows' angles; channels from R on stay.

    ``cosine`` and ``sine`` are [T, R], the first half of the sines negated; heads and rows may have any strides.
    Computed in float32 and rounded once. ``out`` may be x itself (Su et al. 2021, arXiv 2104.09864).

    Raises:
        TypeError, ValueError: tensors that do not fit.
        NativeUnavailableError: there are no native kernels.
    """
    rows, heads, head_dim = check_rows("x", x, [None, None, None]).shape
    size = check_rows("cosine", cosine, [rows, None]).shape[1]
    check_rows("sine", sine, [rows, size])
    if size % 2 or not 0 < size <= head_dim:
        raise ValueError(f"{size} channels cannot be turned in pairs\nGive an even number of angles up to {head_dim}.")
    y = output("out", out, x, (rows, heads, head_dim))
    check_same_or_apart("out", y, x=x)
    check_apart("out", y, cosine=cosine, sine=sine)
    matrices = [Matrix.of(tensor) for tensor in (x, y, cosine, sine)]
    sizes = (rows, heads, head_dim, size, x.stride(1), y.stride(1))
    region.run([(Code.ROTARY, structures.RotaryArgs(*matrices[:2], *sizes, *matrices[2:]))])
    return y
