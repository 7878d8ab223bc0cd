"""Turns a batch into padded blocks of rows that attend alike; shared by the torch backends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from paceline.core.batch import Batch, Int32, Int64


@dataclass(frozen=True, slots=True)
class Span:
    """Requests with about as many rows each, as one padded block: b requests, up to Q rows, up to S slots."""

    rows: torch.Tensor  # i64[b, Q] rows of the batch; a padding cell repeats the request's first row
    scatter: tuple[torch.Tensor, torch.Tensor] | None
    """i64[n] cells of [b * Q] that are real rows, i64[n] the batch row of each; None if rows are 0..T-1 in order."""
    pages: torch.Tensor  # i64[b, P]
    mask: torch.Tensor | None  # bool[b, 1, Q, S], true where visible; None if every row sees all S slots
    num_slots: int  # S


def spans_of(batch: Batch, group: int, page_size: int, device: torch.device) -> list[Span]:
    """Blocks by the power of two above a request's row count, so that padding at most doubles the rows."""
    counts = np.diff(batch.row_start)
    if len(counts) == 1 or (counts == counts[0]).all():
        return [_span(batch, group, page_size, np.arange(len(counts)), device)]
    buckets = np.where(counts > 1, np.ceil(np.log2(np.maximum(counts, 1))), 0).astype(np.int64)
    return [_span(batch, group, page_size, np.flatnonzero(buckets == b), device) for b in np.unique(buckets)]


def _span(batch: Batch, group: int, page_size: int, members: Int64, device: torch.device) -> Span:
    counts = np.diff(batch.row_start)[members]
    width = int(counts.max())
    offsets = np.arange(width)
    real = offsets < counts[:, None]
    rows = batch.row_start[members].astype(np.int64)[:, None] + np.where(real, offsets, 0)
    num_slots = int(batch.num_slots[members].max())
    pages = batch.page_table[group][members][:, : -(-num_slots // page_size)]
    alone = len(members) == 1 and width == 1 and batch.first_visible[group] is None
    mask = None if alone else visible_slots(batch, group, rows, members, num_slots)
    scatter = None
    if len(members) < len(batch.context) or not real.all():
        scatter = torch.from_numpy(np.flatnonzero(real)).to(device), torch.from_numpy(rows[real]).to(device)
    return Span(
        rows=torch.from_numpy(rows).to(device),
        scatter=scatter,
        pages=torch.from_numpy(pages.astype(np.int64)).to(device),
        mask=None if mask is None or mask.all() else torch.from_numpy(mask[:, None]).to(device),
        num_slots=num_slots,
    )


def visible_slots(batch: Batch, group: int, rows: Int64, members: Int64, num_slots: int) -> npt.NDArray[np.bool_]:
    """bool[b, Q, S]: which slots of its request each row sees."""
    slot: Int32 = np.arange(num_slots, dtype=np.int32)
    seen: npt.NDArray[np.bool_] = slot < batch.visible[rows][..., None]
    first = batch.first_visible[group]
    if first is not None:
        seen &= slot >= first[rows][..., None]
    if batch.tree_bits.shape[1]:
        node = slot - batch.context[members][:, None]  # [b, S]
        inside = (node >= 0) & (node < batch.tree_bits.shape[1] * 64)
        node = np.where(inside, node, 0)
        # An arithmetic shift keeps bit 63 right although it is the word's sign.
        words = np.take_along_axis(batch.tree_bits[rows], (node >> 6)[:, None, :], axis=2)
        ancestors = ((words >> (node & 63)[:, None, :]) & 1).astype(bool) & inside[:, None, :]
        if first is not None:
            ancestors &= _positions(batch, members, slot)[:, None, :] >= first[rows][..., None]
        seen |= ancestors
    return seen


def _positions(batch: Batch, members: Int64, slot: Int32) -> Int64:
    """i64[b, S] positions of the slots that this batch writes, which in a tree do not rise with the slot."""
    row = batch.row_start[members + 1, None] - batch.num_slots[members, None] + slot  # rows end with the last slot
    positions: Int64 = batch.positions[row.clip(0, len(batch.positions) - 1)]
    return positions
