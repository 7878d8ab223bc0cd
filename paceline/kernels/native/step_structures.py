"""Knows the structs of ``paceline_native.h`` that tie passes into a step, field by field; checks nothing."""

from __future__ import annotations

import ctypes


class Draft(ctypes.Structure):
    _fields_ = (
        ("width", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("tokens", "parents", "depths", "bits")),
        ("words", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("scores", "counts")),
    )


class Stops(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("tokens", "start"))


class RowGroup(ctypes.Structure):
    _fields_ = (
        ("page_table", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("page_table_stride", "page_size", "window")),
        *((name, ctypes.c_void_p) for name in ("cells", "first_visible")),
    )


class PrepareRows(ctypes.Structure):
    _fields_ = (
        ("requests", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("seats", "context", "start", "first_index", "sampled", "ended")),
        ("tokens", ctypes.c_void_p),
        ("tokens_stride", ctypes.c_int64),
        ("draft", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("first_node", "num_nodes")),
        ("limit", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("position_shift", "first_slot", "last")),
        *((name, ctypes.c_int64) for name in ("masks", "mask_token", "first_output", "repeats_last", "sees_all")),
        *((name, ctypes.c_void_p) for name in ("angle_base", "token_ids", "positions", "angle_rows", "visible")),
        *((name, ctypes.c_void_p) for name in ("tree_bits", "row_start", "sample_start", "logit_rows")),
        *((name, ctypes.c_void_p) for name in ("output_index", "sample_seats", "places", "mask_rows")),
        *((name, ctypes.c_int64) for name in ("places_stride", "num_groups")),
        *((name, ctypes.c_void_p) for name in ("groups", "before")),
        *((name, ctypes.c_int64) for name in ("num_row_fields", "num_sample_fields")),
        *((name, ctypes.c_void_p) for name in ("row_fields", "sample_fields")),
    )


class GrowChain(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("requests", "node")),
        *((name, ctypes.c_void_p) for name in ("draft", "depth")),
        ("stops", Stops),
        *((name, ctypes.c_void_p) for name in ("growing", "broken", "limit")),
    )


class GrowTree(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("requests", "level", "width", "most", "shared")),
        *((name, ctypes.c_void_p) for name in ("draft", "depth", "sample_start", "top_tokens", "top_logits")),
        *((name, ctypes.c_void_p) for name in ("log_sums", "broken", "limit", "room")),
    )


class PruneTree(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("requests", "num_nodes")),
        *((name, ctypes.c_void_p) for name in ("draft", "room")),
    )


class InheritRows(ctypes.Structure):
    _fields_ = (
        ("requests", ctypes.c_int64),
        ("draft", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("first_node", "first_sample")),
        *((name, ctypes.c_void_p) for name in ("row_start", "sample_start", "logit_rows", "parents")),
    )


class Accept(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("requests", "length", "feeds_again")),
        *((name, ctypes.c_void_p) for name in ("draft", "samples", "seats", "depth", "sampled", "ended")),
        *((name, ctypes.c_void_p) for name in ("context", "target_start", "draft_start", "first_index", "tokens")),
        ("tokens_stride", ctypes.c_int64),
        ("stops", Stops),
        *((name, ctypes.c_void_p) for name in ("round", "all_ended")),
        ("num_groups", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("groups", "num_moves", "out_tokens", "out_path")),
        *((name, ctypes.c_void_p) for name in ("out_counts", "out_accepted", "out_nodes")),
    )


class Cells(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("cell_bytes", "page_size", "kv_heads")),
        ("moves", ctypes.c_void_p),
    )


class MoveCells(ctypes.Structure):
    _fields_ = (("num_pools", ctypes.c_int64), ("pools", ctypes.c_void_p), ("num_moves", ctypes.c_void_p))
