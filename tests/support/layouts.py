"""Lays the same row out in many ways: alone, in a chunk, as a draft of a chain or a tree, over pages of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from paceline.kernels.native.pools import Pools
from paceline.kernels.native.visibility import Visibility

HEAD_DIM = 24


@dataclass(frozen=True)
class Row:
    q: torch.Tensor  # [H, head_dim]
    visible: int
    nodes: tuple[int, ...] = ()  # draft slots behind the context that it sees as well
    first: int = 0


@dataclass(frozen=True)
class Request:
    kv: torch.Tensor  # [slots, 2, KV, head_dim]
    rows: Sequence[Row]
    context: int
    windowed: bool = field(default=False)


def numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lay_out(
    requests: Sequence[Request], *, page_size: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, Pools, Visibility]:
    """q [T, H, head_dim], pools whose other cells are NaN, and what each row sees. Pages lie in any order."""
    num_pages = [-(-len(request.kv) // page_size) for request in requests]
    order = np.random.default_rng(page_size).permutation(sum(num_pages)) + 1
    table = np.zeros((len(requests), max(num_pages)), dtype=np.int32)
    _, _, kv_heads, head_dim = requests[0].kv.shape
    pools = tuple(torch.full((len(order) + 1, kv_heads, page_size, head_dim), torch.nan, dtype=dtype) for _ in range(2))
    for number, request in enumerate(requests):
        own, order = order[: num_pages[number]], order[num_pages[number] :]
        table[number, : len(own)] = own
        slots = torch.arange(len(request.kv))
        for pool, values in zip(pools, request.kv.unbind(1), strict=True):
            pool[torch.from_numpy(own)[slots // page_size], :, slots % page_size] = values.to(dtype)
    rows = [row for request in requests for row in request.rows]
    words = -(-max(max((*row.nodes, -1)) + 1 for row in rows) // 64)
    bits = np.zeros((len(rows), words), dtype=np.uint64)
    for number, row in enumerate(rows):
        for node in row.nodes:
            bits[number, node // 64] |= np.uint64(1 << node % 64)
    seen = Visibility(
        row_start=np.cumsum([0, *(len(request.rows) for request in requests)], dtype=np.int32),
        visible=np.array([row.visible for row in rows], dtype=np.int32),
        context=np.array([request.context for request in requests], dtype=np.int32),
        num_slots=np.array([len(request.kv) for request in requests], dtype=np.int32),
        page_table=table,
        tree_bits=bits.view(np.int64),
        first_visible=np.array([row.first for row in rows], dtype=np.int32) if any(row.first for row in rows) else None,
    )
    return torch.stack([row.q for row in rows]), (pools[0], pools[1]), seen


def decoded(q: torch.Tensor, kv: torch.Tensor, first: int = 0) -> Request:
    """A row that sees all of kv from ``first`` on."""
    return Request(kv, [Row(q, len(kv), first=first)], len(kv))


def chunk(q: torch.Tensor, kv: torch.Tensor, *, rows: int, behind: int, window: int | None) -> Request:
    """A piece of a prompt: ``behind`` rows follow the row of q, which sees all of kv; the others are anybody's."""
    whole = torch.cat((kv, numbers(behind, *kv.shape[1:], seed=41)))
    ends = range(len(whole) - min(rows, len(whole)) + 1, len(whole) + 1)
    queries = numbers(len(ends), *q.shape, seed=42)
    queries[len(kv) - ends[0]] = q
    made = [Row(one, end, first=_first(end, window)) for one, end in zip(queries, ends, strict=True)]
    return Request(whole, made, len(whole))


def tree(q: torch.Tensor, kv: torch.Tensor, parents: Sequence[int], node: int, window: int | None) -> Request:
    """A draft whose ``node`` is the row of q: its ancestors are the last slots of kv, the other nodes anything."""
    paths: list[tuple[int, ...]] = []
    for number, parent in enumerate(parents):
        paths.append((*(paths[parent] if parent >= 0 else ()), number))
    context = len(kv) - len(paths[node])
    whole = torch.cat((kv[:context], numbers(len(parents), *kv.shape[1:], seed=43)))
    whole[[context + ancestor for ancestor in paths[node]]] = kv[context:]
    queries = numbers(len(parents), *q.shape, seed=44)
    queries[node] = q
    rows = [
        Row(one, context, path, _first(context + len(path), window)) for one, path in zip(queries, paths, strict=True)
    ]
    return Request(whole, rows, context)


def _first(end: int, window: int | None) -> int:
    return 0 if window is None else max(0, end - window)
