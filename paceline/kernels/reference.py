"""What the native kernels compute, in plain torch: the oracle of their tests; knows nothing of speed."""

from __future__ import annotations

import torch
from torch.nn import functional

from paceline.kernels.native.packing import PackedLinear, kinds, unpack


def quantised(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[T, in] -> integers in [-127, 127] as float32[T, in], and their scales, float32[T, 1].

    The scale of a row with a number that is not finite is NaN, that of one below 1e-30 zero; both have zeros.
    """
    wide = x.float()
    most = wide.abs().amax(1, keepdim=True)
    scale = torch.where(wide.isfinite().all(1, keepdim=True), torch.where(most < 1e-30, 0.0, most / 127), torch.nan)
    fine = scale > 0
    steps = (torch.where(fine, wide, 0.0) * (1 / torch.where(fine, scale, 1.0))).round()
    return steps, scale


def linear(x: torch.Tensor, packed: PackedLinear) -> torch.Tensor:
    """[T, in] -> [T, out] of x's type, summed in float64."""
    weight = unpack(packed).double()
    if packed.scale is None:
        y = functional.linear(x.to(kinds[packed.kind].activation_dtype).double(), weight)
    else:
        steps, scale = quantised(x)
        y = functional.linear(steps.double(), weight) * scale
    return (y if packed.bias is None else y + packed.bias[: packed.out_features]).to(x.dtype)


def int8_linear(x: torch.Tensor, packed: PackedLinear) -> torch.Tensor:
    """``linear`` of an int8 matrix with the very roundings of the kernels, which therefore must agree bit for bit."""
    assert packed.kind == "int8"
    assert packed.scale is not None
    steps, scale = quantised(x)
    column = packed.scale[: packed.out_features]
    weight = (unpack(packed) / torch.where(column > 0, column, 1.0)[:, None]).round()
    sums = functional.linear(steps.double(), weight.double()).float()  # integers below 2^53 are exact in any order
    y = sums * (scale * column)
    return (y if packed.bias is None else y + packed.bias[: packed.out_features]).to(x.dtype)
