"""Knows which tokens would end a seat's output before its least length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from paceline.core.batch import SampleRows
from paceline.core.request import Request
from paceline.sampling.controls import Controls
from paceline.sampling.edits import EditList
from paceline.sampling.processors.base import ban


class MinTokens:
    """Bans the end-of-sequence and stop tokens while the output is shorter than ``min_tokens``."""

    def __init__(self, controls: Controls) -> None:
        self.controls = controls
        self._ends: dict[int, np.ndarray] = {}  # seat -> tokens that end the output

    def join(self, request: Request) -> bool:
        ends = frozenset(request.stop_ids)
        in_vocabulary = sorted(token for token in ends if 0 <= token < self.controls.vocab_size)
        if request.params.min_tokens == 0 or not in_vocabulary:
            return False
        self._ends[request.seat] = np.array(in_vocabulary, dtype=np.int64)
        return True

    def commit(self, seat: int, tokens: list[int]) -> None:
        pass

    def leave(self, seat: int) -> None:
        self._ends.pop(seat, None)

    def apply(self, scores: torch.Tensor, rows: SampleRows) -> None:
        early = rows.output_index < self.controls.min_tokens[rows.seats]
        if early.any():
            nothing = np.zeros(0, dtype=np.int64)
            seats = rows.seats.tolist()
            ban(
                scores, [self._ends[seat] if is_early else nothing for seat, is_early in zip(seats, early, strict=True)]
            )

    def edit(self, rows: SampleRows, chosen: Sequence[int], edits: EditList) -> None:
        for row in chosen:
            seat = int(rows.seats[row])
            if rows.output_index[row] < self.controls.min_tokens[seat]:
                edits.ban(row, self._ends[seat])
