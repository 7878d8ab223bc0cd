"""Knows how the native step between a layer's qkv product and its attention is called."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paceline.kernels.native import pools as pool_structs
from paceline.kernels.native import region, structures
from paceline.kernels.native.checks import check_apart, check_rows, check_same_or_apart, check_vector, output
from paceline.kernels.native.pools import Pools, check_pools
from paceline.kernels.native.structures import Code, Matrix, pointer


@dataclass(frozen=True, slots=True)
class Angles:
    """How rows are rotated: cosines and sines [any, R], the first half of the sines negated."""

    cosine: torch.Tensor
    sine: torch.Tensor
    rows: torch.Tensor | None = None
    """int64[T] rows of cosine and sine, such as positions; None: row t is rotated by row t."""


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMSNorm of every query and every key head by itself; weights float32[head_dim]."""

    query: torch.Tensor
    key: torch.Tensor
    epsilon: float


def write_heads(
    qkv: torch.Tensor,
    pools: Pools,
    cells: torch.Tensor,
    *,
    angles: Angles | None = None,
    norms: HeadNorms | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Norms and rotates the query and key heads of packed rows, and writes keys and values to their cells.

    ``qkv`` is [T, (H + 2 KV) * head_dim]; KV and head_dim are those of the pools [page, KV, offset, head_dim]. Row t
    goes to cell ``cells[t]`` (int64, page * page_size + offset); values as they are, rounded once to the pools' type.
    Norms and rotations are computed in float32 and rounded once. Returns the queries [T, H * head_dim], of qkv's type
    or ``out``'s, which may be ``qkv[:, : H * head_dim]`` itself.

    Raises:
        TypeError, ValueError: tensors that do not fit, cells or angles that there are not.
        NativeUnavailableError: there are no native kernels.
    """
    pages, kv_heads, page_size, head_dim = check_pools(pools)
    rows, columns = check_rows("qkv", qkv, [None, None]).shape
    heads = columns // head_dim - 2 * kv_heads
    if columns % head_dim or heads < 1:
        raise ValueError(
            f"qkv has {columns} columns, no query heads and {kv_heads} K and V heads of {head_dim} channels"
        )
    _check_indices("cells", cells, rows, pages * page_size)
    if angles is not None:
        _check_angles(angles, rows, head_dim)
    if norms is not None:
        check_vector("query norm", norms.query, head_dim)
        check_vector("key norm", norms.key, head_dim)
        if not (isinstance(norms.epsilon, float) and 0 <= norms.epsilon < float("inf")):
            raise ValueError(f"heads cannot be normalised with an epsilon of {norms.epsilon!r}")
    queries = output("out", out, qkv, (rows, heads * head_dim))
    _check_memory(qkv, queries, pools, {"cells": cells} | _parts(angles) | _parts(norms))
    region.run([(Code.HEADS, arguments(qkv, queries, pools, cells, angles=angles, norms=norms))])
    return queries


def arguments(
    qkv: torch.Tensor,
    queries: torch.Tensor,
    pools: Pools,
    cells: torch.Tensor,
    *,
    angles: Angles | None,
    norms: HeadNorms | None,
) -> structures.HeadsArgs:
    """The native struct of sound arguments; the tensors must outlive it."""
    _, kv_heads, _, head_dim = pools[0].shape
    sizes = (qkv.shape[0], queries.shape[1] // head_dim, kv_heads, head_dim)
    rotary_dim = 0 if angles is None else angles.cosine.shape[1]
    cosine, sine, angle_rows = (None, None, None) if angles is None else (angles.cosine, angles.sine, angles.rows)
    query, key, epsilon = (None, None, 0.0) if norms is None else (norms.query, norms.key, norms.epsilon)
    return structures.HeadsArgs(
        *map(Matrix.of, (qkv, queries)),
        *sizes,
        rotary_dim,
        *map(Matrix.of, (cosine, sine)),
        *map(pointer, (angle_rows, query, key)),
        epsilon,
        pool_structs.arguments(pools),
        cells.data_ptr(),
    )


def _check_angles(angles: Angles, rows: int, head_dim: int) -> None:
    known, size = check_rows("cosine", angles.cosine, [None if angles.rows is not None else rows, None]).shape
    check_rows("sine", angles.sine, [known, size])
    if size % 2 or not 0 < size <= head_dim:
        raise ValueError(f"{size} channels cannot be turned in pairs\nGive an even number of angles up to {head_dim}.")
    if angles.rows is not None:
        _check_indices("rows of angles", angles.rows, rows, known)


def _check_indices(name: str, indices: object, rows: int, count: int) -> None:
    """int64[rows] in [0, count)."""
    found = check_vector(name, indices, rows, dtype=torch.int64)
    if rows and not 0 <= int(found.min()) <= int(found.max()) < count:
        raise ValueError(f"{name} go from {int(found.min())} to {int(found.max())}, but there are {count}")


def _parts(options: Angles | HeadNorms | None) -> dict[str, torch.Tensor]:
    parts = {} if options is None else {name: getattr(options, name) for name in options.__slots__}
    return {name: part for name, part in parts.items() if isinstance(part, torch.Tensor)}


def _check_memory(qkv: torch.Tensor, queries: torch.Tensor, pools: Pools, read: dict[str, torch.Tensor]) -> None:
    """What is written shares memory with nothing that is read, but queries with themselves."""
    k, v = pools
    packed = qkv[:, : queries.shape[1]]
    check_same_or_apart("out", queries, qkv=packed)
    if queries.data_ptr() != packed.data_ptr():
        check_apart("out", queries, qkv=qkv)
    check_apart("out", queries, **read)
    check_apart("k pool", k, **{"v pool": v, "qkv": qkv, "out": queries}, **read)
    check_apart("v pool", v, qkv=qkv, out=queries, **read)
