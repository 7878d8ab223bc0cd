"""Knows the normalisations of the residual stream."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from paceline.layers.placement import Placement


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + epsilon) * weight`` (Zhang and Sennrich 2019, arXiv 1910.07467).

    The mean is taken in float32, or in float64 for float64 rows. As in the published Llama code, the normalised row
    is rounded to the model's dtype before the weight is applied; in half precision the order shows.
    """

    def __init__(self, size: int, *, epsilon: float, on: Placement) -> None:
        super().__init__()
        self.weight = on.parameter(size)
        self.shape = (size,)
        self.epsilon = epsilon
        self.rounds_first = on.dtype != on.compute_dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, D] -> [T, D]."""
        if self.rounds_first:
            return functional.rms_norm(x, self.shape, None, self.epsilon) * self.weight
        return functional.rms_norm(x, self.shape, self.weight, self.epsilon)


class LayerNorm(nn.Module):
    """``(x - mean) / sqrt(variance + epsilon) * weight + bias`` (Ba et al. 2016, arXiv 1607.06450)."""

    def __init__(self, size: int, *, epsilon: float, on: Placement) -> None:
        super().__init__()
        self.weight = on.parameter(size)
        self.bias = on.parameter(size)
        self.shape = (size,)
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, D] -> [T, D]."""
        return functional.layer_norm(x, self.shape, self.weight, self.bias, self.epsilon)
