"""Knows what the passes behind a first one read of their rows: one array for all of them, written at once."""

from __future__ import annotations

import ctypes

import numpy as np

from paceline.attention import LayerMap
from paceline.core.batch import Behind, Int32, Int64
from paceline.kernels.native.structures import Visibility, address

NO_BITS = np.zeros(1, dtype=np.int64)
"""Of rows that see no draft: no word is read of any of them."""
_PLACES = {item[0]: getattr(Visibility, item[0]).offset // 8 for item in Visibility._fields_}


class RowsBehind:
    """Room for up to ``depth`` passes over up to ``rows`` rows, one per request; row r of each is request r's."""

    def __init__(self, layers: LayerMap, depth: int, rows: int) -> None:
        shape = depth, rows
        self.positions: Int64 = np.zeros(shape, dtype=np.int64)
        self.cells: list[Int64] = [np.zeros(shape, dtype=np.int64) for _ in layers.stores]
        """[depth, rows] by layer group"""
        size = ctypes.sizeof(Visibility)
        self._numbers = [np.zeros((depth, size // 8), dtype=np.int64) for _ in layers.stores]
        self.seen = [[Visibility.from_buffer(memory.data, i * size) for i in range(depth)] for memory in self._numbers]
        """By layer group, of each pass."""
        self._visible: Int32 = np.zeros(shape, dtype=np.int32)
        self._first: list[Int32] = [np.zeros(shape, dtype=np.int32) for _ in layers.stores]
        self._row_start = np.arange(rows + 1, dtype=np.int32)
        self._held: object = None
        windows = {group for group, spec in zip(layers.group_of, layers.specs, strict=True) if spec.window is not None}
        for group, structs in enumerate(self.seen):
            for number, seen in enumerate(structs):
                seen.row_start, seen.tree_bits = address(self._row_start), address(NO_BITS)
                seen.visible = seen.context = address(self._visible[number])
                seen.first_visible = address(self._first[group][number]) if group in windows else None

    def plan(self, behind: Behind) -> None:
        """Writes what the first ``len(behind)`` passes read; their cells and positions must be sound."""
        passes, rows = behind.slots.shape
        self.positions[:passes, :rows] = behind.slots
        np.add(behind.slots, 1, out=self._visible[:passes, :rows])
        for group, (cells, table) in enumerate(zip(behind.cells, behind.page_table, strict=True)):
            self.cells[group][:passes, :rows] = cells
            numbers = self._numbers[group]
            numbers[:passes, [_PLACES["requests"], _PLACES["rows"]]] = rows
            numbers[:passes, _PLACES["page_table"]] = address(table)
            numbers[:passes, _PLACES["page_table_stride"]] = table.strides[0] // table.itemsize
            first = behind.first_visible[group]
            if first is not None:
                self._first[group][:passes, :rows] = first
        self._held = behind.page_table
