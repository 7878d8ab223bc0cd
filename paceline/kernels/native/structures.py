"""Knows the structs of ``paceline_native.h`` that a pass is made of, and how a tensor becomes one; checks nothing."""

from __future__ import annotations

import ctypes
from enum import IntEnum
from functools import lru_cache
from typing import Any

import torch

NAMES = ("float32", "bfloat16", "float16")
"""Types of activations and outputs, in the order of ``paceline_dtype``."""


class Code(IntEnum):
    """``paceline_code``."""

    LINEAR = 0
    RMS_NORM = 1
    LAYER_NORM = 2
    ROTARY = 3
    GATE = 4
    READ = 5
    HEADS = 6
    ATTENTION = 7
    SAMPLE = 8
    GATHER = 9
    LOGPROBS = 10
    PREPARE_ROWS = 11
    GROW_CHAIN = 12
    GROW_TREE = 13
    ACCEPT = 14
    MOVE_CELLS = 15
    SCATTER = 16
    EXPAND = 17
    INHERIT_ROWS = 18
    PRUNE_TREE = 19


class NativeStatus(IntEnum):
    """``paceline_status``."""

    OK = 0
    NO_SUCH_LEVEL = 1
    NO_SUCH_CODE = 2
    NO_MEMORY = 3
    INTERRUPTED = 4


class Operation(ctypes.Structure):
    _fields_ = (("code", ctypes.c_int64), ("arguments", ctypes.c_void_p))


class Matrix(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("stride", ctypes.c_int64), ("dtype", ctypes.c_int64))

    @classmethod
    def of(cls, tensor: torch.Tensor | None) -> Matrix:
        """Rows of contiguous elements; a null pointer for None."""
        if tensor is None:
            return cls()
        return cls(tensor.data_ptr(), tensor.stride(0), _number_of(tensor.dtype))


class LinearArgs(ctypes.Structure):
    _fields_ = (
        ("x", Matrix),
        ("out", Matrix),
        *((name, ctypes.c_int64) for name in ("rows", "in_features", "out_features", "kind", "group_size")),
        *((name, ctypes.c_void_p) for name in ("weight", "scale", "sums", "bias")),
    )


class NormArgs(ctypes.Structure):
    _fields_ = (
        *((name, Matrix) for name in ("x", "residual", "out")),
        *((name, ctypes.c_int64) for name in ("rows", "size")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias")),
        ("epsilon", ctypes.c_double),
    )


class RotaryArgs(ctypes.Structure):
    _fields_ = (
        *((name, Matrix) for name in ("x", "out")),
        *((name, ctypes.c_int64) for name in ("rows", "heads", "head_dim", "rotary_dim", "head_stride")),
        ("out_head_stride", ctypes.c_int64),
        *((name, Matrix) for name in ("cosine", "sine")),
    )


class GateArgs(ctypes.Structure):
    _fields_ = (
        *((name, Matrix) for name in ("gate", "up", "out")),
        *((name, ctypes.c_int64) for name in ("rows", "size", "activation")),
    )


class ReadArgs(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_int64), ("sum", ctypes.c_void_p))


class Pool(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("k", "v")),
        *((name, ctypes.c_int64) for name in ("dtype", "page_size")),
    )


class HeadsArgs(ctypes.Structure):
    _fields_ = (
        *((name, Matrix) for name in ("qkv", "q")),
        *((name, ctypes.c_int64) for name in ("rows", "heads", "kv_heads", "head_dim", "rotary_dim")),
        *((name, Matrix) for name in ("cosine", "sine")),
        *((name, ctypes.c_void_p) for name in ("angle_rows", "q_norm", "k_norm")),
        ("epsilon", ctypes.c_double),
        ("pool", Pool),
        ("cells", ctypes.c_void_p),
    )


class VisibilityArgs(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("requests", "rows")),
        *((name, ctypes.c_void_p) for name in ("row_start", "visible", "first_visible", "context", "tree_bits")),
        ("words", ctypes.c_int64),
        ("page_table", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("page_table_stride", "most_visible")),
    )


class AttentionArgs(ctypes.Structure):
    _fields_ = (
        *((name, Matrix) for name in ("q", "out")),
        *((name, ctypes.c_int64) for name in ("heads", "kv_heads", "head_dim")),
        *((name, ctypes.c_double) for name in ("scale", "softcap")),
        ("pool", Pool),
        ("visibility", ctypes.c_void_p),
    )


class SampleArgs(ctypes.Structure):
    _fields_ = (
        *((name, Matrix) for name in ("logits", "copies")),
        *((name, ctypes.c_int64) for name in ("rows", "size")),
        *((name, ctypes.c_void_p) for name in ("tokens", "copy", "allowed", "edit_start", "edits")),
        *((name, ctypes.c_void_p) for name in ("seats", "output_index", "places")),
        *((name, ctypes.c_void_p) for name in ("temperature", "top_p", "min_p", "min_p_margin")),
        *((name, ctypes.c_void_p) for name in ("top_k", "seed", "sample_index", "greedy")),
    )


class LogprobsArgs(ctypes.Structure):
    _fields_ = (
        ("logits", Matrix),
        *((name, ctypes.c_int64) for name in ("rows", "size", "width")),
        *((name, ctypes.c_void_p) for name in ("index", "tokens", "top")),
        *((name, ctypes.c_void_p) for name in ("log_sums", "own_logits", "ranks", "top_tokens", "top_logits")),
    )


class GatherArgs(ctypes.Structure):
    _fields_ = (
        *((name, Matrix) for name in ("table", "out")),
        ("index", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("rows", "size", "offset", "add")),
        ("scale", ctypes.c_double),
    )


class ScatterArgs(ctypes.Structure):
    _fields_ = (
        *((name, Matrix) for name in ("x", "out")),
        ("index", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("rows", "size")),
    )


class ExpandArgs(ctypes.Structure):
    _fields_ = (
        *((name, Matrix) for name in ("x", "out")),
        ("columns", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("rows", "size")),
    )


@lru_cache
def _number_of(dtype: torch.dtype) -> int:
    return NAMES.index(str(dtype).removeprefix("torch."))


def pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def address(array: Any) -> int:
    """Where a contiguous array's memory starts."""
    assert array.flags.c_contiguous
    found: int = array.__array_interface__["data"][0]
    return found
