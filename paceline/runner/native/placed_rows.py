"""Knows how a recorded op lays out a pass's rows from what requests know by then, and which buffers it fills."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paceline.attention import LayerMap
from paceline.core.batch import Int32, Int64
from paceline.kernels.native.program import Program
from paceline.kernels.native.structures import Code, Place, PlaceGroup, Visibility, address
from paceline.runner.native.recorded_pass import Follows
from paceline.runner.native.recorder import Recorder
from paceline.runner.native.rows_behind import NO_BITS


@dataclass(frozen=True, slots=True)
class Known:
    """What requests know, [B] each: their number of tokens, and of output tokens; ops move it on."""

    context: Int32
    first_index: Int64


class PlacedRows:
    """``width`` rows for each request, from slot ``context + first`` on; those from ``sampled`` on are sampled."""

    def __init__(
        self,
        layers: LayerMap,
        known: Known,
        *,
        width: int,
        first: int,
        sampled: int = 0,
        shift: int = 0,
        tokens: Sequence[Int64] = (),
        token_ids: Int64 | None = None,
    ) -> None:
        """
        Args:
            shift: how many output tokens after a request's next the first sampled row decides.
            tokens: [B] for each of the ``width`` rows, what it is fed; else ``token_ids`` [B] has it.
        """
        rows = len(known.context) * width
        self.width, self._known, self._tokens = width, known, list(tokens)
        self.token_ids = np.zeros(rows, dtype=np.int64) if token_ids is None else token_ids
        self.output_index = np.zeros(len(known.context) * (width - sampled), dtype=np.int64)
        self._positions, self._visible = np.zeros(rows, dtype=np.int64), np.zeros(rows, dtype=np.int32)
        self._row_start = np.arange(0, rows + 1, width, dtype=np.int32)
        self._sources = (ctypes.c_void_p * max(len(tokens), 1))(*map(address, tokens))
        self._cells = [np.zeros(rows, dtype=np.int64) for _ in layers.stores]
        self._first_visible = [np.zeros(rows, dtype=np.int32) for _ in layers.stores]
        windows = {group: spec.window for group, spec in zip(layers.group_of, layers.specs, strict=True)}
        self._seen = [self._sight(windows[group], group) for group in range(len(layers.stores))]
        self._groups = (PlaceGroup * len(layers.stores))()
        for number, (group, store) in enumerate(zip(self._groups, layers.stores, strict=True)):
            group.page_size, group.window = store.page_size, windows[number] or 0
            group.cells, group.first_visible = address(self._cells[number]), address(self._first_visible[number])
        self._struct = self._place(first, sampled, shift)
        self._number = -1

    def _sight(self, window: int | None, group: int) -> Visibility:
        seen = Visibility()
        seen.row_start, seen.tree_bits = address(self._row_start), address(NO_BITS)
        seen.visible = seen.context = address(self._visible)
        seen.first_visible = None if window is None else address(self._first_visible[group])
        return seen

    def _place(self, first: int, sampled: int, shift: int) -> Place:
        struct = Place(width=self.width, first=first, sampled=sampled, shift=shift)
        struct.context, struct.first_index = address(self._known.context), address(self._known.first_index)
        struct.tokens = ctypes.addressof(self._sources) if self._tokens else None
        struct.token_ids, struct.positions = address(self.token_ids), address(self._positions)
        struct.visible, struct.output_index = address(self._visible), address(self.output_index)
        struct.num_groups, struct.groups = len(self._groups), ctypes.addressof(self._groups)
        return struct

    def record(self, recorder: Recorder) -> None:
        self._number = recorder.add(Code.PLACE, self._struct, self, count="")

    def follows(self, sampled: str) -> Follows:
        """The inputs of the pass over these rows, of which ``sampled`` counts those that are sampled."""
        stride = len(self.token_ids) // len(self.output_index)
        return Follows(self.token_ids, self._positions, self._cells, self._seen, sampled, stride)

    def plan(self, program: Program, requests: int, page_table: Sequence[Int32], end: int) -> None:
        """``page_table`` int32[B, P] by layer group, of pages that there are, and of all slots that rows will have.

        None of these slots is ``end`` or behind it.
        """
        program.structure(self._number, Place).requests = requests
        for seen, group, table in zip(self._seen, self._groups, page_table, strict=True):
            seen.requests, seen.rows, seen.most_visible = requests, requests * self.width, end
            seen.page_table = group.page_table = address(table)
            seen.page_table_stride = group.page_table_stride = table.strides[0] // table.itemsize
