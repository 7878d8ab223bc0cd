"""The kinds whose weights are floats: fp32, bf16, fp16."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paceline.kernels.native.packing.base import PackedLinear, kinds
from paceline.kernels.native.packing.panels import from_panels, to_panels


@dataclass(frozen=True, slots=True)
class FloatKind:
    """Weights as they are, in ``dtype``."""

    name: str
    code: int
    step: int
    dtype: torch.dtype
    activation_dtype: torch.dtype
    grouped: bool = False
    has_sums: bool = False

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None, _group_size: int, /) -> PackedLinear:
        out, inputs = weight.shape
        return PackedLinear(self.name, inputs, out, to_panels(weight.to(self.dtype), self.step), None, None, bias, 0)

    def unpack(self, packed: PackedLinear) -> torch.Tensor:
        return from_panels(packed.weight, packed.out_features, packed.in_features).float()


for _kind in (
    FloatKind("fp32", 0, 1, torch.float32, torch.float32),
    FloatKind("bf16", 1, 2, torch.bfloat16, torch.bfloat16),
    FloatKind("fp16", 2, 1, torch.float16, torch.float32),
):
    kinds.add(_kind.name)(_kind)
