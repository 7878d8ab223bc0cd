"""Knows in which order a layer's parts touch the residual stream."""

from __future__ import annotations

import torch
from torch import nn

from paceline.core.layer import Attend
from paceline.layers.attention import Attention
from paceline.layers.rotary import Rotation


class Block(nn.Module):
    """Attention and MLP, each with a norm of its own; subclasses say how they join the residual stream x.

    Their ``forward(layer, x, rotation, attend)`` maps [T, D] to [T, D], unless they say otherwise.
    """

    def __init__(self, *, attention_norm: nn.Module, attention: Attention, mlp_norm: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.attention_norm = attention_norm
        self.attention = attention
        self.mlp_norm = mlp_norm
        self.mlp = mlp


class PreNormBlock(Block):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def forward(self, layer: int, x: torch.Tensor, rotation: Rotation | None, attend: Attend) -> torch.Tensor:
        x = x + self.attention(layer, self.attention_norm(x), rotation, attend)
        y: torch.Tensor = x + self.mlp(self.mlp_norm(x))
        return y


class PostNormBlock(Block):
    """``norm(x + attention(x))``, then ``norm(x + mlp(x))`` (Vaswani et al. 2017, arXiv 1706.03762)."""

    def forward(self, layer: int, x: torch.Tensor, rotation: Rotation | None, attend: Attend) -> torch.Tensor:
        x = self.attention_norm(x + self.attention(layer, x, rotation, attend))
        y: torch.Tensor = self.mlp_norm(x + self.mlp(x))
        return y


class ParallelBlock(Block):
    """``x + attention(norm(x)) + mlp(norm(x))``: both read the same x (GPT-J, GPT-NeoX)."""

    def forward(self, layer: int, x: torch.Tensor, rotation: Rotation | None, attend: Attend) -> torch.Tensor:
        attended = self.attention(layer, self.attention_norm(x), rotation, attend)
        y: torch.Tensor = x + attended + self.mlp(self.mlp_norm(x))
        return y


class SandwichNormBlock(Block):
    """``x + norm(attention(norm(x)))``, then ``x + norm(mlp(norm(x)))`` (Gemma 2, arXiv 2408.00118)."""

    def __init__(
        self,
        *,
        attention_norm: nn.Module,
        attention: Attention,
        attention_out_norm: nn.Module,
        mlp_norm: nn.Module,
        mlp: nn.Module,
        mlp_out_norm: nn.Module,
    ) -> None:
        super().__init__(attention_norm=attention_norm, attention=attention, mlp_norm=mlp_norm, mlp=mlp)
        self.attention_out_norm = attention_out_norm
        self.mlp_out_norm = mlp_out_norm

    def forward(self, layer: int, x: torch.Tensor, rotation: Rotation | None, attend: Attend) -> torch.Tensor:
        x = x + self.attention_out_norm(self.attention(layer, self.attention_norm(x), rotation, attend))
        y: torch.Tensor = x + self.mlp_out_norm(self.mlp(self.mlp_norm(x)))
        return y


class JoinedBlock(Block):
    """Attention reads token rows and features side by side: the first layer of EAGLE-3 (arXiv 2503.01840).

    ``f + attention(cat(norm(e), hidden_norm(f)))``, then ``x + mlp(norm(x))``: maps cat(e, f) [T, 2D] to [T, D].
    """

    def __init__(
        self,
        *,
        attention_norm: nn.Module,
        hidden_norm: nn.Module,
        attention: Attention,
        mlp_norm: nn.Module,
        mlp: nn.Module,
        norm_before_residual: bool,
    ) -> None:
        """``norm_before_residual``: the residual stream starts with normed features."""
        super().__init__(attention_norm=attention_norm, attention=attention, mlp_norm=mlp_norm, mlp=mlp)
        self.hidden_norm = hidden_norm
        self.norm_before_residual = norm_before_residual

    def forward(self, layer: int, x: torch.Tensor, rotation: Rotation | None, attend: Attend) -> torch.Tensor:
        tokens, features = x.chunk(2, dim=-1)
        normed = self.hidden_norm(features)
        joined = torch.cat((self.attention_norm(tokens), normed), dim=-1)
        residual = normed if self.norm_before_residual else features
        x = residual + self.attention(layer, joined, rotation, attend)
        y: torch.Tensor = x + self.mlp(self.mlp_norm(x))
        return y
