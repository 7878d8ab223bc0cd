"""Knows how token ids and positions become the first residual stream."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from paceline.layers.linear import Linear
from paceline.layers.placement import Placement


class Table(nn.Module):
    """One learned row per index."""

    def __init__(self, num_rows: int, size: int, *, on: Placement) -> None:
        super().__init__()
        self.weight = on.parameter(num_rows, size)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """i64[T] -> [T, D]."""
        return functional.embedding(indices, self.weight)


class InputEmbedding(nn.Module):
    """Token rows; where asked for, scaled, widened, and with learned position rows added, in this order."""

    def __init__(
        self,
        vocab_size: int,
        size: int,
        *,
        on: Placement,
        scale: float | None = None,
        token_size: int | None = None,
        num_positions: int | None = None,
        first_position: int = 0,
    ) -> None:
        """
        Args:
            vocab_size: how many tokens there are.
            size: width D of the residual stream.
            on: where parameters lie.
            scale: token rows are multiplied by it, rounded to their dtype (Gemma).
            token_size: width of the token rows, if other than D; a linear map widens them (OPT-350m).
            num_positions: how many positions have rows (GPT-2, OPT).
            first_position: the row of position 0 (OPT: 2).
        """
        super().__init__()
        narrow = token_size or size
        self.tokens = Table(vocab_size, narrow, on=on)
        self.widen = None if narrow == size else Linear.empty(narrow, (size,), bias=False, on=on)
        self.positions = None if num_positions is None else Table(first_position + num_positions, size, on=on)
        self.first_position = first_position
        self.scale = None if scale is None else torch.tensor(scale, dtype=on.dtype).item()

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """i64[T], i64[T] -> [T, D]."""
        x: torch.Tensor = self.tokens(token_ids)
        if self.scale is not None:
            x = x * self.scale
        if self.widen is not None:
            x = self.widen(x)
        if self.positions is None:
            return x
        placed: torch.Tensor = self.positions(positions + self.first_position if self.first_position else positions)
        return x + placed
