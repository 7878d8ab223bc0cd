"""Knows in which order a layer's parts touch the residual stream."""

from __future__ import annotations

import torch
from torch import nn

from paceline.core.layer import Attend
from paceline.layers.attention import Attention
from paceline.layers.rotary import Rotation


class PreNormBlock(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, *, attention_norm: nn.Module, attention: Attention, mlp_norm: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.attention_norm = attention_norm
        self.attention = attention
        self.mlp_norm = mlp_norm
        self.mlp = mlp

    def forward(self, layer: int, x: torch.Tensor, rotation: Rotation | None, attend: Attend) -> torch.Tensor:
        """[T, D] -> [T, D]."""
        x = x + self.attention(layer, self.attention_norm(x), rotation, attend)
        y: torch.Tensor = x + self.mlp(self.mlp_norm(x))
        return y
