"""Knows how a step's rows follow one another, which the numbers of rows alone decide; knows no tokens, slots or seats.

Decoding repeats the same numbers step after step, so each layout is made once. It is a function of its key alone, and
its arrays cannot be written to.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from paceline.core.batch import Int32, Int64

MOST_KEPT = 256
"""Layouts that are kept; one of 64 requests with drafts takes some 10 KB."""

Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Segments:
    """B stretches of items one after another."""

    start: Int32  # [B + 1] where each begins, and where the last one ends
    owner: Int32  # [n] the stretch of each item
    place: Int32  # [n] its place in that
    one_each: bool

    def expand(self, values: npt.NDArray[Number]) -> npt.NDArray[Number]:
        """[B, ...] by stretch -> [n, ...] by item; not a copy where every stretch has one item."""
        return values if self.one_each else values[self.owner]


@dataclass(frozen=True, slots=True)
class Layout:
    """The rows of a step: each request's known tokens, then its draft's nodes."""

    rows: Segments
    node_rows: Int64  # [n] rows that are draft nodes
    node_owner: Int32  # [n] the request of each of them
    node: Int32  # [n] its number in that one's draft
    logit_rows: Int64  # [R] rows that are sampled
    sample_start: Int32  # [B + 1] a request's span in logit_rows


def segments(counts: Int32) -> Segments:
    """``counts`` int32[B]: the items of each stretch."""
    return _segments(counts.tobytes())


@lru_cache(MOST_KEPT)
def _segments(key: bytes) -> Segments:
    counts = np.frombuffer(key, dtype=np.int32)
    start = np.zeros(len(counts) + 1, dtype=np.int32)
    np.cumsum(counts, out=start[1:])
    owner = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    place = np.arange(start[-1], dtype=np.int32) - start[owner]
    return Segments(_fixed(start), _fixed(owner), _fixed(place), bool((counts == 1).all()))


def layout(num_known: Int32, num_nodes: Int32, sampled: npt.NDArray[np.bool_], unsampled: int = 0) -> Layout:
    """Of requests that feed ``num_known`` int32[B] tokens and ``num_nodes`` int32[B] draft nodes.

    Of those in ``sampled`` [B] the last known token, if one is fed, and every node are sampled, of the others nothing.
    ``unsampled``: how many of the first nodes are not sampled; then no known tokens are fed.
    """
    return _layout(num_known.tobytes(), num_nodes.tobytes(), sampled.tobytes(), unsampled)


@lru_cache(MOST_KEPT)
def _layout(num_known: bytes, num_nodes: bytes, sampled: bytes, unsampled: int) -> Layout:
    known, nodes = np.frombuffer(num_known, dtype=np.int32), np.frombuffer(num_nodes, dtype=np.int32)
    rows = segments(known + nodes)
    node = rows.place - known[rows.owner]
    node_rows = np.flatnonzero(node >= 0)
    decides = np.maximum(nodes - unsampled, 0) + (known > 0)
    spans = segments(np.where(np.frombuffer(sampled, dtype=bool), decides, 0).astype(np.int32))
    first = rows.start[:-1] + np.maximum(known - 1, 0) + unsampled
    logit_rows = first[spans.owner].astype(np.int64) + spans.place
    return Layout(
        rows, _fixed(node_rows), _fixed(rows.owner[node_rows]), _fixed(node[node_rows]), _fixed(logit_rows), spans.start
    )


def _fixed(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.flags.writeable = False
    return array
