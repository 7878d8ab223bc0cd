"""Knows how checkpoint matrices are packed into one matrix product; nothing of where they come from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from paceline.kernels.native.packing import PackedLinear
from paceline.layers.placement import Placement


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
        """The same weights for the native kernels."""

    def release(self) -> None:
        """Frees the weights; only the packed ones can be used from now on."""
        self.weight = nn.Parameter(self.weight.new_empty(0), requires_grad=False)
        self.bias = None

    @classmethod
    def empty(cls, in_features: int, parts: Sequence[int], *, bias: bool, on: Placement, unit: int = 1) -> Linear:
        """Room for ``parts``, to be filled projection by projection through ``part``."""
        out_features = sum(parts)
        weight = on.parameter(out_features, in_features)
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
        return parameter.detach().narrow(0, sum(self.parts[:index]), self.parts[index])

    def by_unit(self, name: str) -> torch.Tensor:
        """A view [units, parts, unit, ...] of the parameter ``name``: unit after unit, each with its projections.

        So a checkpoint stores equal projections that are interleaved head by head.
        """
        parameter: torch.Tensor = getattr(self, name)
        rows: torch.Tensor = parameter.detach().unflatten(0, (len(self.parts), -1, self.unit))
        return rows.transpose(0, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, in] -> [T, out]."""
        return functional.linear(x, self.weight, self.bias)
