"""Knows which sizes of a model native kernels can take; the C++ side trusts every size that it is given."""

from __future__ import annotations

import torch

from paceline.kernels.native.pools import MOST_CHANNELS
from paceline.models import CausalLM


def size_obstacle(model: CausalLM) -> str | None:
    """Which of its sizes is in the way, of a model that may have no memory yet."""
    for spec in model.layer_specs:
        if not 0 < spec.head_dim <= MOST_CHANNELS:
            return f"its kernels take heads of 1 to {MOST_CHANNELS} channels, not {spec.head_dim}"
        if spec.num_kv_heads < 1 or spec.num_heads % spec.num_kv_heads:
            return f"{spec.num_heads} query heads cannot share {spec.num_kv_heads} K/V heads evenly"
    return None


def check_size(what: str, found: int, expected: int) -> None:
    """
    Raises:
        ValueError: two parts of a model that meet here have other sizes.
    """
    if found != expected:
        raise ValueError(f"{what}: {found} numbers a row, where {expected} are read")


def check_heads(qkv: torch.Tensor, pool: torch.Tensor, *, num_heads: int, head_dim: int, rotary_dim: int) -> None:
    """Of packed rows [T, (H + 2 KV) * head_dim] and one pool [page, KV, offset, head_dim].

    Raises:
        ValueError: they do not fit one another.
    """
    check_size("channels of a K/V cell", pool.shape[3], head_dim)
    check_size("query, key and value heads", qkv.shape[1], (num_heads + 2 * pool.shape[1]) * head_dim)
    if rotary_dim % 2 or rotary_dim > head_dim:
        raise ValueError(f"{rotary_dim} of {head_dim} channels cannot be turned in pairs")
