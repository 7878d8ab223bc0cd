"""Knows which tokens end which request, as native ops read it: a call ends once every request has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.kernels.native.program import Program
from paceline.kernels.native.structures import Advance, Enders, EndPass, address

EndingOp = tuple[int, type[Advance] | type[EndPass]]
"""Its number, and its struct."""


class Ends:
    """Buffers for up to ``requests`` requests; of all ops that look at them."""

    def __init__(self, requests: int) -> None:
        self._tokens, self._start = np.zeros(1, dtype=np.int64), np.zeros(requests + 1, dtype=np.int64)
        self._ended, self._all_ended = np.zeros(requests, dtype=np.uint8), np.zeros(1, dtype=np.int64)

    @property
    def all_ended(self) -> bool:
        """Whether the last call stopped short."""
        return bool(self._all_ended[0])

    def structure(self) -> Enders:
        """For ops that are recorded."""
        arrays = self._tokens, self._start, self._ended, self._all_ended
        return Enders(*(address(array) for array in arrays))

    def plan(
        self,
        program: Program,
        ops: Sequence[tuple[int, type[Advance] | type[EndPass]]],
        enders: Sequence[Sequence[int]],
    ) -> None:
        """Has these ops, by number, look for the ``enders`` of each request; nobody has ended yet."""
        self._start[1 : len(enders) + 1] = np.cumsum([len(some) for some in enders])
        tokens = np.array([token for some in enders for token in some], dtype=np.int64)
        if len(tokens):
            self._tokens = tokens
        self._ended[: len(enders)] = self._all_ended[0] = 0
        for number, kind in ops:
            struct = program.structure(number, kind)
            struct.requests, struct.enders.tokens = len(enders), address(self._tokens)
