"""Knows what Medusa heads compute (Cai et al. 2024, arXiv 2401.10774); nothing of files."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from paceline.layers.linear import Linear
from paceline.models.base import LoadedModule
from paceline.models.config import ModelConfig


class ResidualBlock(nn.Module):
    """``x + SiLU(linear(x))``."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, D] -> [T, D]."""
        y: torch.Tensor = x + functional.silu(self.linear(x))
        return y


class MedusaHead(nn.Module):
    """Residual blocks and an output matrix: one further token, from the same hidden row."""

    def __init__(self, blocks: Sequence[ResidualBlock], head: Linear) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.head = head

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[T, D] -> [T, rows of the output matrix]."""
        for block in self.blocks:
            hidden = block(hidden)
        scores: torch.Tensor = self.head(hidden)
        return scores


class MedusaHeads(LoadedModule):
    """Head i gives the token i + 2 after the one whose hidden row it reads, which the target's own head follows.

    The row is the target's, after its final norm. There is no attention, and nothing is kept but the row.
    """

    token_map: torch.Tensor | None

    def __init__(self, config: ModelConfig, heads: Sequence[MedusaHead]) -> None:
        super().__init__()
        self.config = config
        self.heads = nn.ModuleList(heads)
        self.register_buffer("token_map", None)

    @property
    def num_heads(self) -> int:
        return len(self.heads)

    def forward(self, hidden: torch.Tensor) -> list[torch.Tensor]:
        """[T, D] -> logits [T, V] of each head; -inf of tokens that the heads lack."""
        return [self.expanded(head(hidden)) for head in self.heads]

    def expanded(self, scores: torch.Tensor) -> torch.Tensor:
        """[T, rows] -> [T, V]."""
        if self.token_map is None:
            return scores
        logits = scores.new_full((len(scores), self.config.vocab_size), -torch.inf)
        return logits.index_copy_(1, self.token_map, scores)


class HeadLogits(nn.Module):
    """One of the heads over the target's whole vocabulary."""

    def __init__(self, heads: MedusaHeads, number: int) -> None:
        super().__init__()
        self.heads, self.number = heads, number

    @property
    def head(self) -> MedusaHead:
        found = self.heads.heads[self.number]
        assert isinstance(found, MedusaHead)
        return found

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[T, D] -> [T, V]."""
        return self.heads.expanded(self.head(hidden))
