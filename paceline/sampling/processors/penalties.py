"""Knows how often each seat has put out each token, and how that lowers a token's logit."""

from __future__ import annotations

import numpy as np
import torch

from paceline.core.batch import SampleRows
from paceline.core.request import Request
from paceline.sampling.controls import Controls


class Penalties:
    """Repetition, then frequency, then presence penalty, with vLLM's formulas and scopes.

    Repetition divides a positive logit, and multiplies another, by the penalty where the token is in the prompt or
    the output. Frequency subtracts the penalty once per occurrence in the output, presence once if there is any.
    A count vector is kept per seat; a row's draft path is added to its own copy of it.
    """

    def __init__(self, controls: Controls) -> None:
        self.controls = controls
        self._counts: dict[int, torch.Tensor] = {}  # seat -> int32[V] occurrences in the output
        self._in_prompt: dict[int, torch.Tensor] = {}  # seat -> bool[V], where a repetition penalty is in use

    def join(self, request: Request) -> bool:
        params, seat = request.params, request.seat
        if params.repetition_penalty == 1.0 and not params.frequency_penalty and not params.presence_penalty:
            return False
        self._counts[seat] = self._zeros(torch.int32)
        if params.repetition_penalty != 1.0:
            self._in_prompt[seat] = self._zeros(torch.bool)
            self._in_prompt[seat][self._inside(np.asarray(request.prompt_token_ids))] = True
        self.commit(seat, request.output_token_ids)
        return True

    def commit(self, seat: int, tokens: list[int]) -> None:
        index = self._inside(np.asarray(tokens, dtype=np.int64))
        self._counts[seat].index_add_(0, index, torch.ones_like(index, dtype=torch.int32))

    def leave(self, seat: int) -> None:
        self._counts.pop(seat, None)
        self._in_prompt.pop(seat, None)

    def apply(self, scores: torch.Tensor, rows: SampleRows) -> None:
        counts = self._counts_with_path(rows)
        seen = counts > 0
        self._repetition(scores, rows, seen)
        if self.controls.frequency_penalty[rows.seats].any():
            scores -= counts * self.controls.column("frequency_penalty", rows.seats, scores)
        if self.controls.presence_penalty[rows.seats].any():
            scores -= seen * self.controls.column("presence_penalty", rows.seats, scores)

    def _repetition(self, scores: torch.Tensor, rows: SampleRows, seen: torch.Tensor) -> None:
        seats = rows.seats.tolist()
        users = [row for row, seat in enumerate(seats) if seat in self._in_prompt]
        if not users:
            return
        index = torch.tensor(users, device=scores.device)
        known = seen[index] | torch.stack([self._in_prompt[seats[row]] for row in users])
        penalty = self.controls.column("repetition_penalty", rows.seats[users], scores)
        before = scores[index]
        penalised = torch.where(before > 0, before / penalty, before * penalty)
        scores[index] = torch.where(known, penalised, before)

    def _counts_with_path(self, rows: SampleRows) -> torch.Tensor:
        counts = torch.stack([self._counts[seat] for seat in rows.seats.tolist()])
        # A draft token outside the vocabulary cannot be accepted: what follows it is never used.
        bumped = np.nonzero((rows.path >= 0) & (rows.path < self.controls.vocab_size))
        if len(bumped[0]):
            row = torch.from_numpy(bumped[0]).to(counts.device)
            token = torch.from_numpy(rows.path[bumped].astype(np.int64)).to(counts.device)
            counts.index_put_((row, token), counts.new_ones(()), accumulate=True)
        return counts

    def _zeros(self, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(self.controls.vocab_size, dtype=dtype, device=self.controls.device)

    def _inside(self, tokens: np.ndarray) -> torch.Tensor:
        inside = tokens[(tokens >= 0) & (tokens < self.controls.vocab_size)]
        return torch.from_numpy(inside.astype(np.int64)).to(self.controls.device)
