"""Knows how token ids and positions become the first residual stream."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from paceline.layers.placement import Placement


class Table(nn.Module):
    """One learned row per index."""

    def __init__(self, num_rows: int, size: int, *, on: Placement) -> None:
        super().__init__()
        self.weight = on.parameter(num_rows, size)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """i64[T] -> [T, D]."""
        return functional.embedding(indices, self.weight)


class Embedding(nn.Module):
    """Token rows, plus learned position rows where ``num_positions`` is given (GPT-2)."""

    def __init__(self, vocab_size: int, size: int, *, num_positions: int | None = None, on: Placement) -> None:
        super().__init__()
        self.tokens = Table(vocab_size, size, on=on)
        self.positions = None if num_positions is None else Table(num_positions, size, on=on)

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """i64[T], i64[T] -> [T, D]."""
        x: torch.Tensor = self.tokens(token_ids)
        return x if self.positions is None else x + self.positions(positions)
