"""Bad input to native attention raises; wrong structs and a row that sees its batch are found by the comparisons."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from paceline.kernels import reference
from paceline.kernels.native.attention import attend
from paceline.kernels.native.heads import Angles, HeadNorms, write_heads
from paceline.kernels.native.pools import Pools
from paceline.kernels.native.visibility import Visibility
from tests.kernels.test_attention import SCALE, check_a_row_is_alone
from tests.support.layouts import decoded, lay_out, numbers, tree
from tests.support.native import needs_library

ONE = numbers(4, 8, seed=1)
Q, POOLS, SEEN = lay_out(
    [decoded(ONE, numbers(20, 2, 2, 8, seed=2)), tree(ONE, numbers(9, 2, 2, 8, seed=2), [-1, 0, 0], 2, None)],
    page_size=4,
)


def changed(name: str, index: int, value: int) -> Visibility:
    array = getattr(SEEN, name).copy()
    array.reshape(-1)[index] = value
    return replace(SEEN, **{name: array})


def wrapped_starts() -> Visibility:
    """Rows whose differences are positive in int32 alone."""
    return Visibility(
        row_start=np.array([0, 2**31 - 1, -2, 4], dtype=np.int32),
        visible=SEEN.visible,
        context=np.repeat(SEEN.context[:1], 3),
        num_slots=np.repeat(SEEN.num_slots[:1], 3),
        page_table=np.repeat(SEEN.page_table[:1], 3, axis=0),
        tree_bits=SEEN.tree_bits,
    )


def narrow_table() -> Visibility:
    return replace(SEEN, page_table=SEEN.page_table[:, :2].copy())


def shaped(*pools: torch.Tensor, q: torch.Tensor = Q, **options) -> torch.Tensor:
    return attend(q, pools or POOLS, SEEN, **{"scale": SCALE} | options)


BAD_CALLS = {
    "row_start's type": (lambda: replace(SEEN, row_start=SEEN.row_start.astype(np.int64)), TypeError, "int32"),
    "a list": (lambda: replace(SEEN, visible=SEEN.visible.tolist()), TypeError, "visible is list"),
    "a tensor": (lambda: replace(SEEN, context=torch.zeros(2)), TypeError, "context is Tensor"),
    "bits' type": (lambda: replace(SEEN, tree_bits=SEEN.tree_bits.view(np.uint64)), TypeError, "int64"),
    "requests": (lambda: replace(SEEN, num_slots=SEEN.num_slots[:1]), ValueError, r"not \[2\]"),
    "rows": (lambda: replace(SEEN, tree_bits=SEEN.tree_bits[:2]), ValueError, "tree_bits"),
    "strides": (lambda: replace(SEEN, page_table=SEEN.page_table[:, ::2]), ValueError, "contig"),
    "rows that fall": (lambda: changed("row_start", 1, 9), ValueError, "must rise"),
    "rows that fall so far that int32 wraps": (wrapped_starts, ValueError, "must rise"),
    "rows that end early": (lambda: changed("row_start", 2, 3), ValueError, "to the 4 rows"),
    "rows that start late": (lambda: changed("row_start", 0, 1), ValueError, "from 0"),
    "slots that are not in use": (lambda: changed("visible", 0, 21), ValueError, "visible"),
    "negative slots": (lambda: changed("visible", 0, -1), ValueError, "visible"),
    "negative context": (lambda: changed("context", 0, -1), ValueError, "context"),
    "bits that are not in use": (lambda: changed("tree_bits", 1, 8), ValueError, "tree_bits"),
    "bit 63": (lambda: changed("tree_bits", 1, -(2**63)), ValueError, "tree_bits"),
    "bits without draft slots": (lambda: changed("tree_bits", 0, 1), ValueError, "tree_bits"),
    "a row that sees nothing": (lambda: changed("visible", 0, 0), ValueError, "sees nothing"),
    "a window behind the row": (lambda: replace(SEEN, first_visible=SEEN.visible + 9), ValueError, "sees nothing"),
    "a window before slot 0": (lambda: replace(SEEN, first_visible=SEEN.visible * 0 - 1), ValueError, "sees nothing"),
    "negative page": (lambda: changed("page_table", 0, -1), ValueError, "page -1"),
    "no such page": (lambda: attend(Q, POOLS, changed("page_table", 0, 99), scale=SCALE), ValueError, "names page 99"),
    "few pages": (lambda: attend(Q, POOLS, narrow_table(), scale=SCALE), ValueError, "of 5 pages"),
    "q's rows": (lambda: shaped(q=Q[:2]), ValueError, "q has shape"),
    "q's type": (lambda: shaped(q=Q.double()), TypeError, "float64"),
    "q's channels": (lambda: shaped(q=Q[:, :, :7]), ValueError, "q has shape"),
    "q's heads": (lambda: shaped(q=Q[:, :3]), ValueError, "3 query heads"),
    "no heads": (lambda: shaped(q=Q[:, :0]), ValueError, "0 query heads"),
    "heads apart": (lambda: shaped(q=numbers(4, 4, 16, seed=1)[:, :, :8]), ValueError, "side by side"),
    "pools' types": (lambda: shaped(POOLS[0], POOLS[1].half()), TypeError, "one type"),
    "pools' shapes": (lambda: shaped(POOLS[0], POOLS[1][:3]), ValueError, "v pool"),
    "pools of doubles": (lambda: shaped(POOLS[0].double(), POOLS[1].double()), TypeError, "float64"),
    "pools' strides": (lambda: shaped(*(pool.transpose(1, 2) for pool in POOLS)), ValueError, "contiguous"),
    "wide heads": (lambda: shaped(*torch.zeros(2, 9, 2, 4, 1025)), ValueError, "1 to 1024 channels"),
    "empty pools": (lambda: shaped(*torch.zeros(2, 0, 2, 4, 8)), ValueError, "nothing"),
    "scale": (lambda: shaped(scale=float("nan")), ValueError, "nan"),
    "soft cap": (lambda: shaped(softcap=0.0), ValueError, "capped at 0.0"),
    "out's shape": (lambda: shaped(out=torch.empty(4, 4, 7)), ValueError, "out"),
    "out in the pool": (lambda: shaped(out=POOLS[0].view(-1)[:128].view(4, 4, 8)), ValueError, "share memory"),
    "out beside q": (
        lambda: shaped(q=(wide := numbers(5, 4, 8, seed=1))[1:], out=wide[:4]),
        ValueError,
        "share memory",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_input_raises(call, error, message):
    with pytest.raises(error, match=message):
        call()


QKV, CELLS, ANGLES = numbers(4, 64, seed=1), torch.tensor([4, 5, 6, 35]), numbers(4, 8, seed=2)
ROOM: Pools = (torch.zeros(9, 2, 4, 8), torch.zeros(9, 2, 4, 8))
NORM = torch.ones(8)


def write(qkv: torch.Tensor = QKV, cells: torch.Tensor = CELLS, pools: Pools = ROOM, **options) -> torch.Tensor:
    return write_heads(qkv, pools, cells, **options)


BAD_WRITES = {
    "columns": (lambda: write(QKV[:, :60]), ValueError, "60 columns"),
    "no queries": (lambda: write(QKV[:, :32]), ValueError, "32 columns"),
    "doubles": (lambda: write(QKV.double()), TypeError, "float64"),
    "cells' type": (lambda: write(cells=CELLS.int()), TypeError, "int32"),
    "few cells": (lambda: write(cells=CELLS[:3]), ValueError, "cells"),
    "no such cell": (lambda: write(cells=CELLS + 1), ValueError, "to 36, but there are 36"),
    "negative cell": (lambda: write(cells=CELLS - 5), ValueError, "from -1"),
    "rows of angles": (lambda: write(angles=Angles(ANGLES[:3], ANGLES[:3])), ValueError, "cosine"),
    "sines": (lambda: write(angles=Angles(ANGLES, ANGLES[:, :4])), ValueError, "sine"),
    "odd angles": (lambda: write(angles=Angles(ANGLES[:, :3], ANGLES[:, :3])), ValueError, "in pairs"),
    "many angles": (lambda: write(angles=Angles(*[numbers(4, 10, seed=1)] * 2)), ValueError, "up to 8"),
    "no such angle": (lambda: write(angles=Angles(ANGLES, ANGLES, torch.tensor([0, 1, 2, 4]))), ValueError, "are 4"),
    "norm's size": (lambda: write(norms=HeadNorms(NORM, NORM[:7], 1e-6)), ValueError, "key norm"),
    "norm's type": (lambda: write(norms=HeadNorms(NORM.half(), NORM, 1e-6)), TypeError, "query norm"),
    "epsilon": (lambda: write(norms=HeadNorms(NORM, NORM, float("nan"))), ValueError, "epsilon"),
    "out's shape": (lambda: write(out=torch.empty(4, 31)), ValueError, "out"),
    "out among keys": (lambda: write(out=QKV[:, 8:40]), ValueError, "share memory"),
    "out in a pool": (lambda: write(out=ROOM[1].view(-1)[:128].view(4, 32)), ValueError, "share memory"),
    "one pool": (lambda: write(pools=(ROOM[0], ROOM[0])), ValueError, "share memory"),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD_WRITES.values(), ids=BAD_WRITES)
def test_bad_input_to_heads_raises(call, error, message):
    with pytest.raises(error, match=message):
        call()


@needs_library
def test_no_rows():
    seen = Visibility(
        row_start=np.zeros(1, dtype=np.int32),
        visible=np.zeros(0, dtype=np.int32),
        context=np.zeros(0, dtype=np.int32),
        num_slots=np.zeros(0, dtype=np.int32),
        page_table=np.zeros((0, 3), dtype=np.int32),
        tree_bits=np.zeros((0, 0), dtype=np.int64),
    )
    assert attend(Q[:0], POOLS, seen, scale=SCALE).shape == (0, 4, 8)
    assert write(QKV[:0], CELLS[:0]).shape == (0, 32)


def sums_as_torch_likes(q: torch.Tensor, pools: Pools, seen: Visibility, *, scale: float) -> torch.Tensor:
    """Each row by itself, but in products as long as its request's slots: what is planted is their order of sums."""
    outputs = torch.empty_like(q)
    for request in range(len(seen.context)):
        slots = torch.arange(int(seen.num_slots[request]))
        pages = torch.from_numpy(seen.page_table[request]).long()[slots // pools[0].shape[2]]
        k, v = (pool[pages, :, slots % pool.shape[2]].transpose(0, 1).nan_to_num() for pool in pools)
        for row in range(int(seen.row_start[request]), int(seen.row_start[request + 1])):
            mask = torch.zeros(len(slots), dtype=torch.bool)
            mask[reference.seen_slots(seen, row, request)] = True
            grouped = q[row].unflatten(0, (k.shape[0], -1))
            out = functional.scaled_dot_product_attention(grouped[None], k[None], v[None], mask[None], scale=scale)
            outputs[row] = out[0].flatten(0, 1)
    return outputs


def wrong_context(q: torch.Tensor, pools: Pools, seen: Visibility, *, scale: float) -> torch.Tensor:
    """Draft slots are taken to start a slot too early."""
    return attend(q, pools, replace(seen, context=np.maximum(seen.context - 1, 0)), scale=scale)


def slots_for_positions(q: torch.Tensor, pools: Pools, seen: Visibility, *, scale: float) -> torch.Tensor:
    """Windows are cut off by slot: a scattered ancestor's slot is behind its position."""
    first = None if seen.first_visible is None else np.minimum(seen.first_visible, np.maximum(seen.visible - 1, 0))
    return attend(q, pools, replace(seen, first_visible=first), scale=scale)


@needs_library
@pytest.mark.parametrize(
    ("planted", "window"), [(sums_as_torch_likes, None), (wrong_context, None), (slots_for_positions, 3)]
)
def test_the_check_finds_rows_that_hang_on_their_layout(planted, window):
    with pytest.raises(AssertionError, match="pages of"):
        check_a_row_is_alone(planted, (6, 2, 24), 100, window=window)
