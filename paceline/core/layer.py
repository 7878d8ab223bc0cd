"""What one attention layer needs of the KV memory and of the attention backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """Shapes and rules of one attention layer."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    """A row sees the last ``window`` positions, itself included; None sees all."""
    softcap: float | None = None
    """Scores become ``softcap * tanh(score / softcap)``, after scaling, before the mask."""


Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""``attend(layer, q [T, H, head_dim], k [T, KV, head_dim], v [T, KV, head_dim]) -> [T, H, head_dim]``.

Writes this pass's K/V to the pool, then attends through the pool.
"""
