"""Seats requests whose pages lie anywhere, draws drafts for them, and takes down native ops of a step over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from paceline.attention import LayerMap
from paceline.cache.group import KVGroup
from paceline.cache.pages import PageAllocator
from paceline.cache.stores import DenseStore
from paceline.core.batch import Batch, Output
from paceline.core.layer import LayerSpec
from paceline.core.seats import Seats
from paceline.core.step import DraftTrees
from paceline.runner.executor import GraphSizes
from paceline.runner.native.graph_builder import NativeBuilder

CAPACITY, MAX_LEN, MOST_NODES = 10, 48, 70
MOST_REQUESTS = 8
VOCAB = 5
"""So few tokens that drafts often equal what is sampled, and end a request."""


@dataclass(frozen=True, eq=False)
class Part:
    """What step ops need of a model: where its K/V lie. A pass over rows gives the next of ``logits``."""

    layers: LayerMap
    groups: list[KVGroup]
    logits: Sequence[torch.Tensor] = ()
    model: None = None
    executor: None = None
    kept: None = None

    def forward(self, batch: Batch, *_more: object) -> Output:
        return Output(torch.zeros(len(batch.logit_rows), 1), torch.zeros(len(batch.token_ids), 1))


def make_part(
    random: np.random.Generator,
    layouts: Sequence[tuple[int, int | None]],
    *,
    dtype: torch.dtype = torch.float32,
    kv_heads: int = 1,
    head_dim: int = 1,
    layers: int = 1,
    feature_size: int = 0,
) -> Part:
    """Groups of ``layers`` layers each, of such page sizes and windows; every cell holds numbers of its own.

    The first group keeps features.
    """
    groups, spec = [], LayerSpec(num_heads=kv_heads, num_kv_heads=kv_heads, head_dim=head_dim, scale=1.0)
    for page_size, window in layouts:
        pages = -(-(MAX_LEN + MOST_NODES) // page_size)
        count = CAPACITY * pages
        store = DenseStore(
            [spec] * layers,
            num_pages=count + 1,
            page_size=page_size,
            dtype=dtype,
            device="cpu",
            feature_size=0 if groups else feature_size,
        )
        if store.features is not None:
            store.features.copy_(torch.from_numpy(random.standard_normal(tuple(store.features.shape))))
        for layer in range(layers):
            for pool in store.pools(layer):
                pool.copy_(torch.from_numpy(random.standard_normal(tuple(pool.shape))))
        group = KVGroup(
            "group", store, PageAllocator(count), num_seats=CAPACITY, max_slots=MAX_LEN + MOST_NODES, window=window
        )
        group.page_table[:] = 1 + random.permutation(count).reshape(CAPACITY, pages)
        groups.append(group)
    numbers = [(group, layer) for layer in range(layers) for group in range(len(groups))]
    stores = [group.store for group in groups]
    return Part(LayerMap([spec] * len(numbers), stores, *zip(*numbers, strict=True)), groups)


def make_seats(random: np.random.Generator) -> Seats:
    seats = Seats(CAPACITY, MAX_LEN)
    seats.tokens[:] = random.integers(1000, size=seats.tokens.shape)
    seats.longest[:] = MAX_LEN
    return seats


def some_seats(random: np.random.Generator, count: int) -> np.ndarray:
    return random.permutation(CAPACITY)[:count].astype(np.int32)


def draw_drafts(random: np.random.Generator, counts: Sequence[int], width: int, *, chain: bool) -> DraftTrees:
    """``width`` nodes of each request, of which ``counts`` are in use. A tree's node has any parent before it."""
    tokens = random.integers(VOCAB, size=(len(counts), width)).astype(np.int32)
    used = np.array(counts, dtype=np.int32)
    if chain:
        return DraftTrees.chains(tokens, used)
    parents = np.array([[int(random.integers(max(-1, node - 4), node)) for node in range(width)] for _ in counts])
    return DraftTrees(tokens, parents.reshape(tokens.shape).astype(np.int32), used)


def record(part: Part, seats: Seats, *, nodes: int, trees: bool, length: int = 0, rounds: int = 1) -> NativeBuilder:
    """Takes down ops for up to ``MOST_REQUESTS`` requests."""
    sizes = GraphSizes(MOST_REQUESTS, nodes, length, rounds, MOST_REQUESTS * MAX_LEN, trees)
    return NativeBuilder(part, seats, None, sizes)


def load(builder: NativeBuilder, seats: np.ndarray, **state: np.ndarray | Sequence[int]) -> None:
    """Where requests stand, by the names of ``StateBuffers``; nobody has ended unless ``state`` says so."""
    for name, values in {"seats": seats, **state}.items():
        getattr(builder.state, name)[: len(seats)] = values
    for side in builder.sides.values():
        side.pages.load(seats)


def load_drafts(builder: NativeBuilder, drafts: DraftTrees) -> None:
    count, width, kept = len(drafts.counts), drafts.width, builder.draft
    kept.counts[:count] = drafts.counts
    kept.tokens[:count, :width] = drafts.tokens
    if kept.words and width:
        kept.parents[:count, :width], kept.depths[:count, :width] = drafts.parents, drafts.depths
        own = DraftTrees(drafts.tokens, drafts.parents.copy(), drafts.counts).ancestor_bits
        kept.bits[:count, :width] = 0
        kept.bits[:count, :width, : own.shape[2]] = own
