"""Holds the arrays that the native ops of a step share: where requests stand, what is drafted, what is accepted.

B requests, N draft nodes of each, D tokens of the deepest path, R rounds.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from paceline.attention import LayerMap
from paceline.cache.group import KVGroup
from paceline.core.batch import Int32, Int64
from paceline.kernels.native.step_structures import Cells, Draft, RowGroup, Stops
from paceline.kernels.native.structures import address
from paceline.runner.executor import GraphSizes
from paceline.runner.features import flat_features


class DraftBuffers:
    """The draft trees of all requests."""

    def __init__(self, sizes: GraphSizes) -> None:
        shape, width = (sizes.requests, sizes.nodes), sizes.nodes
        self.tokens: Int64 = np.zeros(shape, dtype=np.int64)
        self.parents: Int32 = np.zeros(shape, dtype=np.int32)
        self.depths: Int32 = np.zeros(shape, dtype=np.int32)
        self.words = -(-width // 64) if sizes.trees else 0
        self.bits: Int64 = np.zeros((*shape, self.words), dtype=np.int64)
        self.scores = np.zeros(shape, dtype=np.float64)
        self.counts: Int32 = np.zeros(sizes.requests, dtype=np.int32)
        self.structure = Draft(width=width, words=self.words, tokens=address(self.tokens), counts=address(self.counts))
        if sizes.trees:
            self.structure.parents, self.structure.depths = address(self.parents), address(self.depths)
            self.structure.bits, self.structure.scores = address(self.bits), address(self.scores)


class StopIds:
    """The tokens that end each request."""

    def __init__(self, requests: int) -> None:
        self.tokens: Int64 = np.zeros(requests * 8, dtype=np.int64)
        self.start: Int64 = np.zeros(requests + 1, dtype=np.int64)

    def structure(self) -> Stops:
        return Stops(address(self.tokens), address(self.start))

    def fill(self, stop_ids: Sequence[Sequence[int]]) -> bool:
        """True if the tokens lie elsewhere from now on, as there was no room for so many."""
        flat = [token for some in stop_ids for token in some]
        moved = len(flat) > len(self.tokens)
        if moved:
            self.tokens = np.zeros(2 * len(flat), dtype=np.int64)
        self.tokens[: len(flat)] = flat
        end = 0
        for number, some in enumerate(stop_ids, 1):
            end += len(some)
            self.start[number] = end
        return moved


class StateBuffers:
    """Where each request stands; ops move it on from round to round."""

    def __init__(self, sizes: GraphSizes) -> None:
        size = sizes.requests
        self.seats: Int32 = np.zeros(size, dtype=np.int32)
        self.context: Int32 = np.zeros(size, dtype=np.int32)
        """Known tokens that rows may be of."""
        self.first_index: Int64 = np.zeros(size, dtype=np.int64)
        """Output tokens."""
        self.target_start, self.draft_start = (np.zeros(size, dtype=np.int32) for _ in range(2))
        """The first known token that each model's cache lacks."""
        self.depth: Int32 = np.zeros(size, dtype=np.int32)
        self.limit: Int32 = np.zeros(size, dtype=np.int32)
        """Draft nodes that are fed next."""
        self.sampled, self.drafts, self.ended, self.growing, self.broken = (
            np.zeros(size, dtype=np.uint8) for _ in range(5)
        )
        self.stops = StopIds(size)


class ResultBuffers:
    """What each round came to."""

    def __init__(self, sizes: GraphSizes) -> None:
        size, length = sizes.rounds * sizes.requests, sizes.length
        self.tokens: Int64 = np.zeros(size * (length + 1), dtype=np.int64)
        self.path: Int32 = np.zeros(size * length, dtype=np.int32)
        self.counts, self.accepted, self.nodes = (np.zeros(size, dtype=np.int32) for _ in range(3))
        self.round, self.all_ended, self.num_moves = (np.zeros(1, dtype=np.int64) for _ in range(3))


class GroupBuffers:
    """One model's pages of the requests, and per stage the cells of its rows, by layer group."""

    def __init__(self, groups: Sequence[KVGroup], sizes: GraphSizes) -> None:
        self.groups, self.windows = list(groups), [group.window for group in groups]
        self.tables: list[Int32] = [
            np.zeros((sizes.requests, group.page_table.shape[1]), dtype=np.int32) for group in groups
        ]
        self.num_pages = [len(group.store.pools(0)[0]) for group in groups]

    def load(self, seats: Int32) -> None:
        """Copies the page tables of seats."""
        for group, table in zip(self.groups, self.tables, strict=True):
            np.take(group.page_table, seats, axis=0, out=table[: len(seats)])

    def structures(self, cells: Sequence[Int64], first_visible: Sequence[Int32 | None]) -> ctypes.Array[RowGroup]:
        made = (RowGroup * len(self.groups))()
        for number, (struct, group, table) in enumerate(zip(made, self.groups, self.tables, strict=True)):
            struct.page_table, struct.page_table_stride = address(table), table.shape[1]
            struct.page_size, struct.window = group.page_size, group.window or 0
            struct.cells = address(cells[number])
            first = first_visible[number]
            struct.first_visible = None if first is None else address(first)
        return made


def pools_of(layers: LayerMap, moves: Sequence[Int64]) -> ctypes.Array[Cells]:
    """K and V of every layer, and features, whose cells move as ``moves`` says, by layer group."""
    found = []
    for group, number in zip(layers.group_of, layers.index_in_group, strict=True):
        store = layers.stores[group]
        for pool in store.pools(number):
            size = pool.shape[3] * pool.element_size()
            found.append(Cells(pool.data_ptr(), size, store.page_size, pool.shape[1], address(moves[group])))
    for store, some in zip(layers.stores, moves, strict=True):
        features = flat_features(store)
        if features is not None:
            size = features.shape[1] * features.element_size()
            found.append(Cells(features.data_ptr(), size, store.page_size, 1, address(some)))
    return (Cells * len(found))(*found)
