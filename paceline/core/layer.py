"""What one attention layer needs of the KV memory and of the attention backend, and what a pass hands to all layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PassContext:
    """What one pass over T rows hands to a model besides token ids and positions."""

    attend: Attend
    taps: tuple[int, ...] = ()
    """Layers whose incoming residual stream is wanted; ``num_layers`` means what leaves the last one."""
    rope_length: npt.NDArray[np.int64] | None = None
    """i64[T] the sequence length that each row's rotary embedding uses; None where none depends on it."""
    layers: int | None = None
    """How many of the first layers are computed; None: all."""
    inputs: torch.Tensor | None = None
    """f[T, ``CausalLM.input_size``] what a draft module reads beside each token, such as the target's features."""
