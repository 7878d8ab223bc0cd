"""Knows how a packed linear is called; ``paceline.kernels.reference.linear`` is the same in torch."""

from __future__ import annotations

import torch

from paceline.kernels.native import region, structures
from paceline.kernels.native.checks import check_apart, check_rows, output
from paceline.kernels.native.packing import PackedLinear, kinds


def linear(x: torch.Tensor, packed: PackedLinear, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """``x W^T + bias``, [T, in] -> [T, out], of x's type or ``out``'s. No gradient flows.

    A row's bits depend on nothing but the row and the weights: not on the other rows, not on the number of threads.
    Products are summed in float32, those of int8 exactly. Before them a row is rounded to bfloat16 (bf16), or
    quantised with one scale to [-127, 127] (int8, int4); a row with a number that is not finite becomes NaN.

    Raises:
        TypeError, ValueError: tensors that do not fit.
        NativeUnavailableError: there are no native kernels.
    """
    if not isinstance(packed, PackedLinear):
        raise TypeError(f"packed must come from pack(), got {type(packed).__name__}")
    check_rows("x", x, [None, packed.in_features])
    y = output("out", out, x, (x.shape[0], packed.out_features))
    check_apart("out", y, x=x, weight=packed.weight, scale=packed.scale, sums=packed.sums, bias=packed.bias)
    region.run([(structures.Code.LINEAR, arguments(x, packed, y))])
    return y


def arguments(x: torch.Tensor, packed: PackedLinear, out: torch.Tensor) -> structures.LinearArgs:
    """The native struct; the tensors must outlive it."""
    return structures.LinearArgs(
        structures.Matrix.of(x),
        structures.Matrix.of(out),
        x.shape[0],
        packed.in_features,
        packed.out_features,
        kinds[packed.kind].code,
        packed.group_size,
        *map(structures.pointer, (packed.weight, packed.scale, packed.sums, packed.bias)),
    )
