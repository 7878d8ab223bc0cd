"""Knows how many bytes and operations each native op takes, from its struct; runs nothing.

Bytes are what an op must read and write at least: weights with their scales once, however many rows share them, and no
scratch. A multiplication and an addition are two operations; only products count, as in ``counting``.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from paceline.benchmark.traffic import ATTENTION, LINEAR, OTHER, UNCOUNTED, Traffic
from paceline.kernels.native import step_structures, structures
from paceline.kernels.native.packing import WIDTH, kinds, weight_shape
from paceline.kernels.native.structures import Code, Matrix

Count = Callable[[Any], tuple[int, int]]
"""struct -> (bytes, operations)"""
WORD = 4
"""Bytes of a float32 or int32."""


@dataclass(frozen=True, slots=True)
class NativeCount:
    """How the calls of one op are counted."""

    kind: str
    structure: type[ctypes.Structure]
    count: Count


native_counts: dict[Code, NativeCount] = {}
"""A further op is one more entry."""


def counts(code: Code, kind: str, structure: type[ctypes.Structure]) -> Callable[[Count], Count]:
    """Decorator: this is how ops of the code are counted."""

    def register(count: Count) -> Count:
        native_counts[code] = NativeCount(kind, structure, count)
        return count

    return register


def count_operations(operations: Iterable[tuple[int, int]]) -> dict[str, Traffic]:
    """Kind of kernel -> what its ops take.

    Args:
        operations: each op's code and the address of its struct, with the rows of the run in question.
    """
    found: dict[str, Traffic] = {}
    for code, address in operations:
        entry = native_counts.get(Code(code))
        if entry is None:
            found.setdefault(UNCOUNTED, Traffic()).add(0, 0)
        else:
            found.setdefault(entry.kind, Traffic()).add(*entry.count(entry.structure.from_address(address)))
    return found


def moved(matrix: Matrix, rows: int, size: int) -> int:
    """Bytes of rows of a matrix; none where there is no matrix."""
    return rows * size * getattr(torch, structures.NAMES[matrix.dtype]).itemsize if matrix.data else 0


@cache
def weight_bytes(kind: int, in_features: int, out_features: int, group_size: int) -> int:
    """Of a packed matrix with its scales and sums, as ``PackedLinear`` lays them out; without a bias."""
    how = next(kinds[name] for name in kinds if kinds[name].code == kind)
    shape = weight_shape(how, in_features, out_features, group_size)
    return math.prod(shape) * how.dtype.itemsize + (2 * WORD * WIDTH * shape[0] if how.has_sums else 0)


@counts(Code.LINEAR, LINEAR, structures.LinearArgs)
def _linear(a: structures.LinearArgs) -> tuple[int, int]:
    weights = weight_bytes(a.kind, a.in_features, a.out_features, a.group_size)
    bias = -(-a.out_features // WIDTH) * WIDTH * WORD if a.bias else 0
    rows = moved(a.x, a.rows, a.in_features) + moved(a.out, a.rows, a.out_features)
    return rows + weights + bias, 2 * a.rows * a.in_features * a.out_features


@counts(Code.RMS_NORM, OTHER, structures.NormArgs)
@counts(Code.LAYER_NORM, OTHER, structures.NormArgs)
def _norm(a: structures.NormArgs) -> tuple[int, int]:
    parameters = WORD * a.size * (bool(a.weight) + bool(a.bias))
    return sum(moved(m, a.rows, a.size) for m in (a.x, a.residual, a.residual, a.out)) + parameters, 0


@counts(Code.ROTARY, OTHER, structures.RotaryArgs)
def _rotary(a: structures.RotaryArgs) -> tuple[int, int]:
    angles = moved(a.cosine, a.rows, a.rotary_dim) + moved(a.sine, a.rows, a.rotary_dim)
    return sum(moved(m, a.rows, a.heads * a.head_dim) for m in (a.x, a.out)) + angles, 0


counts(Code.GATE, OTHER, structures.GateArgs)(
    lambda a: (sum(moved(m, a.rows, a.size) for m in (a.gate, a.up, a.out)), 0)
)
counts(Code.READ, OTHER, structures.ReadArgs)(lambda a: (a.size + WORD, 0))
counts(Code.SAMPLE, OTHER, structures.SampleArgs)(lambda a: (moved(a.logits, a.rows, a.size) + 8 * a.rows, 0))

counts(Code.LOGPROBS, OTHER, structures.LogprobsArgs)(lambda a: (moved(a.logits, a.rows, a.size) + 8 * a.rows, 0))
# A few numbers a row, which are in the nearest cache.
counts(Code.PREPARE_ROWS, OTHER, step_structures.PrepareRows)(lambda a: (8 * WORD * a.requests * (1 + a.num_nodes), 0))
counts(Code.GROW_CHAIN, OTHER, step_structures.GrowChain)(lambda a: (6 * WORD * a.requests, 0))
counts(Code.GROW_TREE, OTHER, step_structures.GrowTree)(lambda a: (6 * WORD * a.requests * a.width * a.most, 0))
counts(Code.ACCEPT, OTHER, step_structures.Accept)(lambda a: (8 * WORD * a.requests * (a.length + 1), 0))
counts(Code.MOVE_CELLS, OTHER, step_structures.MoveCells)(lambda a: (WORD * a.num_pools, 0))
counts(Code.INHERIT_ROWS, OTHER, step_structures.InheritRows)(lambda a: (4 * WORD * a.requests, 0))
counts(Code.PRUNE_TREE, OTHER, step_structures.PruneTree)(lambda a: (6 * WORD * a.requests * a.num_nodes, 0))
counts(Code.SCATTER, OTHER, structures.ScatterArgs)(
    lambda a: (moved(a.x, a.rows, a.size) + moved(a.out, a.rows, a.size), 0)
)
counts(Code.EXPAND, OTHER, structures.ExpandArgs)(lambda a: (2 * moved(a.out, a.rows, a.size), 0))


@counts(Code.HEADS, OTHER, structures.HeadsArgs)
def _heads(a: structures.HeadsArgs) -> tuple[int, int]:
    columns, kept = a.heads * a.head_dim, a.kv_heads * a.head_dim
    rows = moved(a.qkv, a.rows, columns + 2 * kept) + moved(a.q, a.rows, columns)
    angles = sum(moved(m, a.rows, a.rotary_dim) for m in (a.cosine, a.sine))
    indices = 2 * WORD * a.rows * (bool(a.cells) + bool(a.angle_rows))
    norms = WORD * a.head_dim * (bool(a.q_norm) + bool(a.k_norm))
    return rows + angles + indices + norms + 2 * a.rows * kept * _cell_bytes(a.pool), 0


@counts(Code.ATTENTION, ATTENTION, structures.AttentionArgs)
def _attention(a: structures.AttentionArgs) -> tuple[int, int]:
    """A request's K/V count once, however many of its rows see them."""
    seen = structures.VisibilityArgs.from_address(a.visibility)
    starts = _array(seen.row_start, ctypes.c_int32, seen.requests + 1)
    visible = _array(seen.visible, ctypes.c_int32, seen.rows).astype(np.int64)
    first = _array(seen.first_visible, ctypes.c_int32, seen.rows) if seen.first_visible else np.zeros_like(visible)
    bits = _array(seen.tree_bits, ctypes.c_int64, seen.rows * seen.words).reshape(seen.rows, seen.words)
    pairs = int((visible + _num_set(bits) - first).sum())
    cells = 0
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        if start < end:
            drafted = _num_set(np.bitwise_or.reduce(bits[start:end], axis=0, keepdims=True))
            cells += int(visible[start:end].max() - first[start:end].min() + drafted[0])
    rows = sum(moved(m, seen.rows, a.heads * a.head_dim) for m in (a.q, a.out))
    return rows + 2 * cells * a.kv_heads * a.head_dim * _cell_bytes(a.pool), 4 * pairs * a.heads * a.head_dim


def _cell_bytes(pool: structures.Pool) -> int:
    size: int = getattr(torch, structures.NAMES[pool.dtype]).itemsize
    return size


def _array(address: int, kind: type[ctypes._SimpleCData[int]], count: int) -> npt.NDArray[Any]:
    return np.ctypeslib.as_array((kind * count).from_address(address or 0)) if count else np.zeros(0, dtype=np.int64)


def _num_set(words: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Bits of each row of words."""
    counts: npt.NDArray[np.int64] = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1).sum(
        1, dtype=np.int64
    )
    return counts


@counts(Code.GATHER, OTHER, structures.GatherArgs)
def _gather(a: structures.GatherArgs) -> tuple[int, int]:
    index = 2 * WORD * a.rows if a.index else 0
    return moved(a.table, a.rows, a.size) + moved(a.out, a.rows, a.size) * (2 if a.add else 1) + index, 0
