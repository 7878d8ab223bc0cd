"""Knows an attention layer's projections; caches, masks and scores belong to the ``attend`` that it is given."""

from __future__ import annotations

import torch
from torch import nn

from paceline.core.layer import Attend, LayerSpec
from paceline.layers.linear import Linear
from paceline.layers.norm import HeadNorm
from paceline.layers.placement import Placement
from paceline.layers.rotary import Rotation, rotate


class Attention(nn.Module):
    """Query, key and value heads from one product, normed and rotated together, attended elsewhere, projected back.

    The q, k and v handed to ``attend`` are views of packed rows: contiguous within a row, strided between rows.
    """

    def __init__(
        self,
        hidden: int,
        spec: LayerSpec,
        *,
        bias: bool,
        output_bias: bool,
        on: Placement,
        head_norm: HeadNorm | None = None,
        input_size: int | None = None,
    ) -> None:
        """``input_size``: width of the rows that are read, if other than ``hidden``, the width of those returned."""
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        sizes = [count * spec.head_dim for count in (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)]
        self.qkv = Linear.empty(input_size or hidden, sizes, bias=bias, on=on, unit=spec.head_dim)
        self.head_norm = head_norm
        self.out = Linear.empty(sizes[0], (hidden,), bias=output_bias, on=on)

    def forward(self, layer: int, x: torch.Tensor, rotation: Rotation | None, attend: Attend) -> torch.Tensor:
        """[T, ``input_size``] -> [T, D]."""
        num_rotated = self.num_heads + self.num_kv_heads
        rows = self.qkv(x).view(-1, num_rotated + self.num_kv_heads, self.head_dim)  # [T, H + 2 KV, head_dim]
        qk, v = rows.split((num_rotated, self.num_kv_heads), dim=1)
        if self.head_norm is not None:
            qk = self.head_norm(qk)
        if rotation is not None:
            qk = rotate(qk, rotation)
        q, k = qk.split((self.num_heads, self.num_kv_heads), dim=1)
        y: torch.Tensor = self.out(attend(layer, q, k, v).reshape(x.shape[0], -1))
        return y
