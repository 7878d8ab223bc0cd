"""Collects what controls do to single scores, so that no row of logits has to be copied; knows no control.

Shape letters: R rows, V vocabulary.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import numpy.typing as npt

from paceline.core.batch import Int64
from paceline.kernels.native.sampling import EDIT, Edits

Bool = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]


def packed_bits(allowed: Bool) -> Words:
    """uint64[ceil(V / 64)]: bit i % 64 of word i // 64 is ``allowed[i]``."""
    padded = np.zeros(-(-len(allowed) // 64) * 64, dtype=bool)
    padded[: len(allowed)] = allowed
    return np.packbits(padded, bitorder="little").view("<u8").astype(np.uint64)


class EditList:
    """The edits of R rows, by row in the order in which they were noted."""

    def __init__(self, num_rows: int) -> None:
        self._parts: list[list[np.ndarray]] = [[] for _ in range(num_rows)]
        self._allowed: dict[int, Words] = {}

    def change(
        self,
        row: int,
        tokens: Int64,
        *,
        repetition: float | np.ndarray = 1.0,
        first: float | np.ndarray = 0.0,
        second: float | np.ndarray = 0.0,
    ) -> None:
        """Score x of each of ``tokens`` [n] becomes (x > 0 ? x / repetition : x * repetition) - first - second.

        The operands are numbers, or one for each token, and are rounded to float32.
        """
        part = np.empty(len(tokens), dtype=EDIT)
        part["token"], part["repetition"], part["first"], part["second"] = tokens, repetition, first, second
        self._parts[row].append(part)

    def ban(self, row: int, tokens: Int64) -> None:
        """Gives -inf to ``tokens`` [n]."""
        if len(tokens):
            self.change(row, tokens, first=np.inf)

    def allow(self, row: int, words: Words) -> None:
        """Bans every token whose bit in ``words``, as ``packed_bits`` makes them, is not set."""
        before = self._allowed.get(row)
        self._allowed[row] = words if before is None else before & words

    def collected(self) -> Edits:
        """All that was noted."""
        start = np.array([0, *accumulate(sum(map(len, parts)) for parts in self._parts)], dtype=np.int64)
        # As plain numbers, whose joining costs a tenth of that of fields.
        flat = [part.view(np.int32) for parts in self._parts for part in parts]
        edits = np.concatenate(flat) if flat else np.zeros(0, dtype=np.int32)
        return Edits(start, edits.view(EDIT), self._allowed)
