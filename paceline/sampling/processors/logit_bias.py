"""Knows what each seat adds to the logits of which tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from paceline.core.batch import SampleRows
from paceline.core.request import Request
from paceline.sampling.controls import Controls
from paceline.sampling.edits import EditList
from paceline.sampling.processors.base import scatter_index


class LogitBias:
    """Adds the listed biases. A banned token stays banned."""

    def __init__(self, controls: Controls) -> None:
        self.controls = controls
        self._tokens: dict[int, np.ndarray] = {}  # seat -> int64[n]
        self._biases: dict[int, np.ndarray] = {}  # seat -> float64[n]

    def join(self, request: Request) -> bool:
        bias = request.params.logit_bias
        if not bias:
            return False
        self._tokens[request.seat] = np.array(list(bias), dtype=np.int64)
        self._biases[request.seat] = np.array(list(bias.values()), dtype=np.float64)
        return True

    def commit(self, seat: int, tokens: list[int]) -> None:
        pass

    def leave(self, seat: int) -> None:
        self._tokens.pop(seat, None)
        self._biases.pop(seat, None)

    def apply(self, scores: torch.Tensor, rows: SampleRows) -> None:
        seats = rows.seats.tolist()
        index = scatter_index([self._tokens[seat] for seat in seats], scores.device)
        biases = torch.from_numpy(np.concatenate([self._biases[seat] for seat in seats]))
        scores[index] += biases.to(scores.device, scores.dtype)

    def edit(self, rows: SampleRows, chosen: Sequence[int], edits: EditList) -> None:
        for row in chosen:
            seat = int(rows.seats[row])
            edits.change(row, self._tokens[seat], first=-self._biases[seat])
