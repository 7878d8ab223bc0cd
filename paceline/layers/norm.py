"""Knows the normalisations of the residual stream."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from paceline.layers.placement import Placement


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + epsilon) * weight`` (Zhang and Sennrich 2019, arXiv 1910.07467).

    The mean is taken in float32, or in float64 for float64 rows. As in the published Llama code, the normalised row
    is rounded to the model's dtype before the weight is applied; if ``rounds_last`` (Gemma), the weight is kept and
    applied in the wider type. In half precision the order shows.
    """

    def __init__(self, size: int, *, epsilon: float, on: Placement, rounds_last: bool = False) -> None:
        super().__init__()
        self.weight = (on.wide if rounds_last else on).parameter(size)
        self.shape = (size,)
        self.epsilon = epsilon
        self.is_half = on.dtype != on.compute_dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, D] -> [T, D]."""
        if not self.is_half:
            return functional.rms_norm(x, self.shape, self.weight, self.epsilon)
        y = functional.rms_norm(x.to(self.weight.dtype), self.shape, None, self.epsilon) * self.weight
        return y.to(x.dtype)


class HeadNorm(nn.Module):
    """RMSNorm of every query and key head by itself: one weight for the query heads, one for the key heads."""

    def __init__(
        self, counts: tuple[int, int], head_dim: int, *, epsilon: float, on: Placement, rounds_last: bool = False
    ) -> None:
        """``counts`` are the numbers of query and of key heads."""
        super().__init__()
        # A row per head, so that one product serves both kinds.
        self.weight = (on.wide if rounds_last else on).parameter(sum(counts), head_dim)
        self.counts = counts
        self.shape = (head_dim,)
        self.epsilon = epsilon

    def part(self, name: str, index: int) -> torch.Tensor:
        """A view of the rows of the query heads (0) or key heads (1); all rows of one kind are equal."""
        parameter: torch.Tensor = getattr(self, name)
        return parameter.detach().narrow(0, sum(self.counts[:index]), self.counts[index])

    def forward(self, heads: torch.Tensor) -> torch.Tensor:
        """[T, H + KV, head_dim] -> the same."""
        y = functional.rms_norm(heads.to(self.weight.dtype), self.shape, None, self.epsilon) * self.weight
        return y.to(heads.dtype)


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
