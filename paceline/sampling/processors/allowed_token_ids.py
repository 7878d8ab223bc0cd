"""Keeps the only tokens that each seat may choose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from paceline.core.batch import SampleRows
from paceline.core.request import Request
from paceline.core.token_set import TokenSet
from paceline.sampling.controls import Controls
from paceline.sampling.edits import EditList, Words, packed_bits


class AllowedTokenIds:
    """Bans every token that is not listed."""

    def __init__(self, controls: Controls) -> None:
        self.controls = controls
        self._banned: dict[int, torch.Tensor] = {}  # seat -> bool[V]
        self._words: dict[int, Words] = {}  # seat -> a bit per token, set where it is allowed

    def join(self, request: Request) -> bool:
        allowed = request.params.allowed_token_ids
        if not isinstance(allowed, TokenSet):
            return False
        bits = np.frombuffer(allowed.bits, dtype=np.uint8)
        mask = np.unpackbits(bits, count=self.controls.vocab_size, bitorder="little").astype(bool)
        self._banned[request.seat] = torch.from_numpy(~mask).to(self.controls.device)
        self._words[request.seat] = packed_bits(mask)
        return True

    def commit(self, seat: int, tokens: list[int]) -> None:
        pass

    def leave(self, seat: int) -> None:
        self._banned.pop(seat, None)
        self._words.pop(seat, None)

    def apply(self, scores: torch.Tensor, rows: SampleRows) -> None:
        for row, seat in enumerate(rows.seats.tolist()):
            scores[row].masked_fill_(self._banned[seat], -torch.inf)

    def edit(self, rows: SampleRows, chosen: Sequence[int], edits: EditList) -> None:
        for row in chosen:
            edits.allow(row, self._words[int(rows.seats[row])])
