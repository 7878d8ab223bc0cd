"""Knows how many bytes and operations each native op takes, from its struct; runs nothing.

Bytes are what an op must read and write at least: weights with their scales once, however many rows share them, and no
scratch. A multiplication and an addition are two operations; only products count, as in ``counting``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from paceline.benchmark.traffic import LINEAR, OTHER, UNCOUNTED, Traffic
from paceline.kernels.native import structures
from paceline.kernels.native.packing import WIDTH, kinds
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
    unit = max(how.step, group_size)
    blocks, inputs = -(-out_features // WIDTH), -(-in_features // unit) * unit
    per_byte = 2 if group_size else 1  # grouped weights are nibbles
    weights = blocks * WIDTH * inputs * how.dtype.itemsize // per_byte
    scales = 0 if how.scale_dtype is None else blocks * WIDTH * (inputs // (group_size or inputs))
    sums = blocks * WIDTH * WORD if how.dtype is torch.int8 else 0
    return weights + sums + scales * (0 if how.scale_dtype is None else how.scale_dtype.itemsize)


@counts(Code.LINEAR, LINEAR, structures.Linear)
def _linear(a: structures.Linear) -> tuple[int, int]:
    weights = weight_bytes(a.kind, a.in_features, a.out_features, a.group_size)
    bias = -(-a.out_features // WIDTH) * WIDTH * WORD if a.bias else 0
    rows = moved(a.x, a.rows, a.in_features) + moved(a.out, a.rows, a.out_features)
    return rows + weights + bias, 2 * a.rows * a.in_features * a.out_features


@counts(Code.RMS_NORM, OTHER, structures.Norm)
@counts(Code.LAYER_NORM, OTHER, structures.Norm)
def _norm(a: structures.Norm) -> tuple[int, int]:
    parameters = WORD * a.size * (bool(a.weight) + bool(a.bias))
    return sum(moved(m, a.rows, a.size) for m in (a.x, a.residual, a.residual, a.out)) + parameters, 0


@counts(Code.ROTARY, OTHER, structures.Rotary)
def _rotary(a: structures.Rotary) -> tuple[int, int]:
    angles = moved(a.cosine, a.rows, a.rotary_dim) + moved(a.sine, a.rows, a.rotary_dim)
    return sum(moved(m, a.rows, a.heads * a.head_dim) for m in (a.x, a.out)) + angles, 0


counts(Code.GATE, OTHER, structures.Gate)(lambda a: (sum(moved(m, a.rows, a.size) for m in (a.gate, a.up, a.out)), 0))
counts(Code.READ, OTHER, structures.Read)(lambda a: (a.size + WORD, 0))
