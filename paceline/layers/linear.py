"""Knows how checkpoint matrices join in one product, and how torch computes it; nothing of where they come from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from paceline.kernels.native.packing import PackedLinear, quantised_kinds, unpack
from paceline.kernels.reference import quantised as rounded
from paceline.layers.placement import Placement, check_range


class Linear(nn.Module):
    """``y = x W^T + b`` whose output is several projections side by side, so that one product serves them all."""

    def __init__(
        self,
        weight: nn.Parameter,
        bias: nn.Parameter | None = None,
        *,
        parts: Sequence[int] | None = None,
        unit: int = 1,
    ) -> None:
        """``weight`` [out, in], ``bias`` [out]; ``parts`` are the rows of each projection, in order; ``unit`` rows
        belong together (a head)."""
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.parts = (weight.shape[0],) if parts is None else tuple(parts)
        self.unit = unit
        self.packed: PackedLinear | None = None
        """The weights for the native kernels, once they are packed."""

    def release(self) -> None:
        """Frees the weights; only the packed ones can be used from now on."""
        self.weight = nn.Parameter(self.weight.new_empty(0), requires_grad=False)
        self.bias = None

    @classmethod
    def empty(cls, in_features: int, parts: Sequence[int], *, bias: bool, on: Placement, unit: int = 1) -> Linear:
        """Room for ``parts``, to be filled projection by projection through ``part``."""
        out_features = sum(parts)
        weight = on.matrix(out_features, in_features)
        return cls(weight, on.parameter(out_features) if bias else None, parts=parts, unit=unit)

    @classmethod
    def from_parts(
        cls, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor] = (), *, transposed: bool = False
    ) -> Linear:
        """Packs whole tensors: weights [out_i, in] each, or [in, out_i] if ``transposed``; biases [out_i]."""
        rows = [weight.t() if transposed else weight for weight in weights]
        on = Placement(rows[0].dtype, rows[0].device)
        linear = cls.empty(rows[0].shape[1], [weight.shape[0] for weight in rows], bias=bool(biases), on=on)
        for index, weight in enumerate(rows):
            linear.part("weight", index).copy_(weight)
        for index, bias in enumerate(biases):
            linear.part("bias", index).copy_(bias)
        return linear

    def part(self, name: str, index: int) -> torch.Tensor:
        """A view of projection ``index``'s rows of the parameter ``name`` ("weight" or "bias")."""
        parameter: torch.Tensor = getattr(self, name)
        return self.part_of(parameter, index)

    def part_of(self, rows: torch.Tensor, index: int) -> torch.Tensor:
        """A view of projection ``index``'s rows of a tensor [out, ...]."""
        return rows.detach().narrow(0, sum(self.parts[:index]), self.parts[index])

    def by_unit(self, name: str) -> torch.Tensor:
        """A view [units, parts, unit, ...] of the parameter ``name``: unit after unit, each with its projections.

        So a checkpoint stores equal projections that are interleaved head by head.
        """
        parameter: torch.Tensor = getattr(self, name)
        return self.by_unit_of(parameter)

    def by_unit_of(self, rows: torch.Tensor) -> torch.Tensor:
        """The same view of a tensor [out, ...]."""
        units: torch.Tensor = rows.detach().unflatten(0, (len(self.parts), -1, self.unit))
        return units.transpose(0, 1)

    @property
    def quantised(self) -> bool:
        """The weights are integers and scales; ``weight`` has no memory before torch computes with it."""
        return self.packed is not None and self.packed.kind in quantised_kinds

    def quantise_to(self, packed: PackedLinear) -> None:
        """Replaces the weights and the bias by packed ones; ``weight`` gives up its memory."""
        self.packed = packed
        outline = torch.empty_like(self.weight, device="meta")
        self.weight = nn.Parameter(outline, requires_grad=False)

    def dequantise(self, device: torch.device) -> None:
        """Gives ``weight`` what the quantised weights stand for, so that torch can compute with them.

        Raises:
            ValueError: numbers beyond what the type of ``weight`` reaches.
        """
        assert self.packed is not None
        wide = unpack(self.packed)
        weight = wide.to(device, self.weight.dtype)
        check_range(wide, weight)
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, in] -> [T, out]. The rows of a quantised linear are rounded as the native kernels round them."""
        if not self.quantised:
            return functional.linear(x, self.weight, self.bias)
        if self.weight.is_meta:
            self.dequantise(x.device)
        steps, scale = (part.to(torch.promote_types(x.dtype, torch.float32)) for part in rounded(x))
        return functional.linear((steps * scale).to(x.dtype), self.weight, self.bias)
