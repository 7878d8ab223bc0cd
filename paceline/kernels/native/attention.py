"""Knows how native paged attention is called; ``paceline.kernels.reference.attend`` is the same in torch."""

from __future__ import annotations

import ctypes
import math

import torch

from paceline.kernels.native import pools as pool_structs
from paceline.kernels.native import region, structures
from paceline.kernels.native.checks import check_apart, check_rows, check_same_or_apart, output
from paceline.kernels.native.pools import Pools, check_pools
from paceline.kernels.native.structures import Code, Matrix
from paceline.kernels.native.visibility import Visibility


def attend(
    q: torch.Tensor,
    pools: Pools,
    seen: Visibility,
    *,
    scale: float,
    softcap: float | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """``softmax(scale q K^T) V`` of rows [T, H, head_dim] over what each sees of the pools.

    The pools are [page, KV, offset, head_dim]. Query heads share K/V heads in consecutive groups (Ainslie et al. 2023,
    arXiv 2305.13245). With ``softcap`` c scores become ``c tanh(score / c)`` (Gemma 2, arXiv 2408.00118). Computed in
    float32 and rounded once, to q's type or ``out``'s; ``out`` may be q itself.

    A row's bits depend on the row and on the K/V that it sees, in order of position, alone: not on other rows, where
    K/V lie, whether its ancestors are a chain's or a tree's, or the number of threads. What no row sees is not read.

    Raises:
        TypeError, ValueError: tensors that do not fit, pages that there are not.
        NativeUnavailableError: there are no native kernels.
    """
    _check_fits(q, pools, seen)
    if not math.isfinite(scale) or not (softcap is None or 0 < softcap < math.inf):
        raise ValueError(f"scores cannot be scaled by {scale!r} and capped at {softcap!r}")
    y = output("out", out, q, q.shape)
    _check_packed(q=q, out=y)
    check_same_or_apart("out", y, q=q)
    check_apart("out", y, **dict(zip(("k pool", "v pool"), pools, strict=True)))
    visibility = seen.arguments()
    region.run([(Code.ATTENTION, arguments(q, y, pools, visibility, scale=scale, softcap=softcap))])
    return y


def arguments(
    q: torch.Tensor,
    out: torch.Tensor,
    pools: Pools,
    visibility: structures.VisibilityArgs,
    *,
    scale: float,
    softcap: float | None,
) -> structures.AttentionArgs:
    """The native struct of sound arguments; the tensors, and the struct of what rows see, must outlive it."""
    _, kv_heads, _, head_dim = pools[0].shape
    return structures.AttentionArgs(
        *map(Matrix.of, (q, out)),
        q.shape[1:].numel() // head_dim,
        kv_heads,
        head_dim,
        scale,
        softcap or 0.0,
        pool_structs.arguments(pools),
        ctypes.addressof(visibility),
    )


def _check_fits(q: torch.Tensor, pools: Pools, seen: Visibility) -> None:
    pages, kv_heads, page_size, head_dim = check_pools(pools)
    heads = check_rows("q", q, [seen.num_rows, None, head_dim]).shape[1]
    if not heads or heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} K/V heads evenly")
    if seen.num_pages > pages:
        raise ValueError(f"the page table names page {seen.num_pages - 1}, but the pools have {pages}")
    if seen.most_slots > seen.page_table.shape[1] * page_size:
        raise ValueError(
            f"{seen.most_slots} slots do not fit {seen.page_table.shape[1]} pages of {page_size}\n"
            f"Give a page table of {-(-seen.most_slots // page_size)} pages a request."
        )


def _check_packed(**tensors: torch.Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.shape[1] > 1 and tensor.stride(1) != tensor.shape[2]:
            raise ValueError(f"{name} has strides {tensor.stride()}\nLay the heads of a row side by side.")
