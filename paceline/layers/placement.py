"""Knows in which dtype and on which device a model's parameters are allocated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class Placement:
    """Where parameters lie. On the "meta" device they have shapes and no memory."""

    dtype: torch.dtype
    device: torch.device
    matrices: torch.device | None = None
    """Where the matrices of linears lie, if elsewhere: on "meta" those that are quantised while they are read."""

    @property
    def compute_dtype(self) -> torch.dtype:
        """float32, or float64 for a float64 model: what norms and angles are computed in."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def wide(self) -> Placement:
        """The same device, in ``compute_dtype``."""
        return Placement(self.compute_dtype, self.device)

    def parameter(self, *shape: int) -> nn.Parameter:
        """An uninitialised parameter that a checkpoint will fill; serving needs no gradient."""
        return nn.Parameter(torch.empty(shape, dtype=self.dtype, device=self.device), requires_grad=False)

    def matrix(self, *shape: int) -> nn.Parameter:
        """A linear's matrix, likewise."""
        return Placement(self.dtype, self.matrices or self.device).parameter(*shape)
