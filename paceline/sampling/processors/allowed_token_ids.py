"""Knows which tokens alone each seat may choose."""

from __future__ import annotations

import numpy as np
import torch

from paceline.core.batch import SampleRows
from paceline.core.request import Request
from paceline.sampling.controls import Controls


class AllowedTokenIds:
    """Bans every token that is not listed."""

    def __init__(self, controls: Controls) -> None:
        self.controls = controls
        self._banned: dict[int, torch.Tensor] = {}  # seat -> bool[V]

    def join(self, request: Request) -> bool:
        allowed = request.params.allowed_token_ids
        if allowed is None:
            return False
        banned = np.ones(self.controls.vocab_size, dtype=bool)
        banned[list(allowed)] = False
        self._banned[request.seat] = torch.from_numpy(banned).to(self.controls.device)
        return True

    def commit(self, seat: int, tokens: list[int]) -> None:
        pass

    def leave(self, seat: int) -> None:
        self._banned.pop(seat, None)

    def apply(self, scores: torch.Tensor, rows: SampleRows) -> None:
        for row, seat in enumerate(rows.seats.tolist()):
            scores[row].masked_fill_(self._banned[seat], -torch.inf)
