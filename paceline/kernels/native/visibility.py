"""Knows how native attention is told what each row of a batch sees, and checks that a batch may be believed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from paceline.core.batch import Batch, Int32, Int64
from paceline.kernels.native import structures
from paceline.kernels.native.structures import address


@dataclass(frozen=True, slots=True, eq=False)
class Visibility:
    """What the rows of a batch see in one layer group, as in ``Batch``; nothing in it may be changed afterwards.

    B requests, T rows, W words of tree bits, P pages.
    """

    row_start: Int32  # [B + 1]
    visible: Int32  # [T]
    context: Int32  # [B]
    num_slots: Int32  # [B]
    page_table: Int32  # [B, P]
    tree_bits: Int64  # [T, W]
    first_visible: Int32 | None = None  # [T]
    num_pages: int = field(init=False)
    """Pages that a pool must have."""
    most_slots: int = field(init=False)
    """Of one request."""

    def __post_init__(self) -> None:
        """Raises:
        TypeError, ValueError: arrays of other types or shapes, or whose numbers contradict each other.
        """
        self._check_arrays()
        self._check_requests()
        self._check_rows()
        object.__setattr__(self, "num_pages", int(self.page_table.max(initial=-1)) + 1)
        object.__setattr__(self, "most_slots", int(self.num_slots.max(initial=0)))

    @classmethod
    def of(cls, batch: Batch, group: int) -> Visibility:
        """Raises:
        TypeError, ValueError: as for the class.
        """
        return cls(
            row_start=batch.row_start,
            visible=batch.visible,
            context=batch.context,
            num_slots=batch.num_slots,
            page_table=batch.page_table[group],
            tree_bits=batch.tree_bits,
            first_visible=batch.first_visible[group],
        )

    @property
    def num_rows(self) -> int:
        return len(self.visible)

    def arguments(self) -> structures.VisibilityArgs:
        """The native struct; the arrays must outlive it."""
        seen = structures.VisibilityArgs()
        point_at(
            seen,
            row_start=self.row_start,
            visible=self.visible,
            first_visible=self.first_visible,
            context=self.context,
            tree_bits=self.tree_bits,
            page_table=self.page_table,
        )
        return seen

    def _check_arrays(self) -> None:
        _check_array("context", self.context, np.int32, [None])
        _check_array("visible", self.visible, np.int32, [None])
        requests, rows = len(self.context), len(self.visible)
        _check_array("row_start", self.row_start, np.int32, [requests + 1])
        _check_array("num_slots", self.num_slots, np.int32, [requests])
        _check_array("page_table", self.page_table, np.int32, [requests, None])
        _check_array("tree_bits", self.tree_bits, np.int64, [rows, None])
        if self.first_visible is not None:
            _check_array("first_visible", self.first_visible, np.int32, [rows])

    def _check_requests(self) -> None:
        starts = self.row_start
        if starts[0] != 0 or starts[-1] != len(self.visible) or (starts[1:] < starts[:-1]).any():
            raise ValueError(f"row_start must rise from 0 to the {len(self.visible)} rows")
        if (self.context < 0).any():
            raise ValueError(f"context has slot {int(self.context.min())}\nSlots start at 0.")
        if (self.page_table < 0).any():
            raise ValueError(f"page_table has page {int(self.page_table.min())}\nPages start at 0.")

    def _check_rows(self) -> None:
        owner = np.repeat(np.arange(len(self.context)), np.diff(self.row_start))
        slots = self.num_slots[owner]
        if (self.visible < 0).any() or (self.visible > slots).any():
            raise ValueError("visible names slots that are not in use\nRows see at most num_slots of their request.")
        nodes = (slots - self.context[owner])[:, None] - 64 * np.arange(self.tree_bits.shape[1])
        words = self.tree_bits.view(np.uint64)
        beyond = np.where(nodes < 64, words >> nodes.clip(0, 63).astype(np.uint64), 0)
        beyond = np.where(nodes < 0, words, beyond)
        if beyond.any():
            raise ValueError("tree_bits name slots that are not in use\nBit i stands for slot context + i.")
        count = np.unpackbits(self.tree_bits.view(np.uint8), axis=1).sum(1, dtype=np.int32) if words.size else 0
        first = 0 if self.first_visible is None else self.first_visible
        if np.less(first, 0).any() or (first >= self.visible + count).any():
            raise ValueError("a row sees nothing\nfirst_visible lies in [0, visible + the number of tree bits).")


def point_at(
    seen: structures.VisibilityArgs,
    *,
    row_start: Int32,
    visible: Int32,
    first_visible: Int32 | None,
    context: Int32,
    tree_bits: Int64,
    page_table: Int32,
) -> None:
    """Has the native struct point to sound arrays, which must outlive what it is used for."""
    seen.requests, seen.rows = len(context), len(visible)
    seen.row_start, seen.visible = address(row_start), address(visible)
    seen.first_visible = None if first_visible is None else address(first_visible)
    seen.context, seen.tree_bits, seen.words = address(context), address(tree_bits), tree_bits.shape[1]
    seen.page_table, seen.page_table_stride = address(page_table), page_table.strides[0] // page_table.itemsize


def _check_array(name: str, array: object, dtype: npt.DTypeLike, shape: list[int | None]) -> None:
    """A C-contiguous array.

    Raises:
        TypeError: no array, or one of another type.
        ValueError: another shape or layout.
    """
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"{name} is {found}\nGive a numpy array of {np.dtype(dtype)}.")
    wanted = [found if size is None else size for found, size in zip(array.shape, shape, strict=False)]
    if array.ndim != len(shape) or list(array.shape) != wanted:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has shape {list(array.shape)}, not [{sizes}]")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} has strides {array.strides}\nMake it contiguous.")
