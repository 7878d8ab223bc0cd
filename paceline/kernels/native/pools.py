"""Knows how the pools of a layer's K/V are handed to native kernels: cells [page, kv_head, offset, head_dim]."""

from __future__ import annotations

import torch

from paceline.kernels.native.checks import check_shape, check_tensor
from paceline.kernels.native.structures import NAMES, Pool

MOST_CHANNELS = 1024
"""Of a head. Kernels have room for any number; this many are tried out, and each thread keeps 64 heads at once."""

Pools = tuple[torch.Tensor, torch.Tensor]
"""K and V of one layer, of one type and shape, contiguous."""


def check_pools(pools: Pools) -> tuple[int, int, int, int]:
    """Their shape: pages, K/V heads, page size, head size.

    Raises:
        TypeError, ValueError: tensors that are no pools.
    """
    k, v = pools
    pages, kv_heads, page_size, head_dim = _checked("k pool", k, [None] * 4).shape
    _checked("v pool", v, [pages, kv_heads, page_size, head_dim])
    if k.dtype is not v.dtype:
        raise TypeError(f"the k pool is {k.dtype}, the v pool {v.dtype}\nKeep both in one type.")
    if not (pages and kv_heads and page_size and 0 < head_dim <= MOST_CHANNELS):
        raise ValueError(
            f"a pool of shape {list(k.shape)} holds nothing, or heads of other than 1 to {MOST_CHANNELS} channels"
        )
    return pages, kv_heads, page_size, head_dim


def _checked(name: str, pool: object, shape: list[int | None]) -> torch.Tensor:
    found = check_tensor(name, pool)
    check_shape(name, found, shape)
    if not found.is_contiguous():
        raise ValueError(f"{name} has strides {found.stride()}\nMake it contiguous.")
    return found


def arguments(pools: Pools) -> Pool:
    """The native struct; the tensors must outlive it."""
    k, v = pools
    return Pool(k.data_ptr(), v.data_ptr(), NAMES.index(str(k.dtype).removeprefix("torch.")), k.shape[2])
