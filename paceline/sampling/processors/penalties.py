"""Knows how often each seat has put out each token, and how that lowers a token's logit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from paceline.core.batch import Int64, SampleRows
from paceline.core.request import Request
from paceline.sampling.controls import Controls
from paceline.sampling.edits import EditList
from paceline.sampling.processors.base import scatter_index


class Counted:
    """Tokens that one seat has seen, in the order in which they came first, and how often it has put out each."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}  # token -> its place in both arrays
        self._tokens = np.zeros(64, dtype=np.int64)
        self._counts = np.zeros(64, dtype=np.int64)

    def add(self, tokens: Iterable[int], times: int) -> None:
        """Each token was put out so many times more; 0 for tokens of the prompt."""
        for token in tokens:
            place = self._places.setdefault(token, len(self._places))
            if place == len(self._tokens):
                self._tokens, self._counts = (
                    np.concatenate([array, np.zeros_like(array)]) for array in (self._tokens, self._counts)
                )
            self._tokens[place] = token
            self._counts[place] += times

    def with_path(self, path: list[int]) -> tuple[Int64, Int64]:
        """The tokens, each once, and their counts, as if ``path`` had been put out too; to be read only."""
        size = len(self._places)
        if not path:
            return self._tokens[:size], self._counts[:size]
        counts = np.zeros(size + len(path), dtype=np.int64)
        counts[:size] = self._counts[:size]
        new: dict[int, int] = {}
        for token in path:
            place = self._places.get(token)
            counts[new.setdefault(token, size + len(new)) if place is None else place] += 1
        tokens = np.concatenate([self._tokens[:size], np.fromiter(new, dtype=np.int64, count=len(new))])
        return tokens, counts[: len(tokens)]


class Penalties:
    """Repetition, then frequency, then presence penalty, with vLLM's formulas and scopes.

    Repetition divides a positive logit, and multiplies another, by the penalty where the token is in the prompt or
    the output. Frequency subtracts the penalty once per occurrence in the output, presence once if there is any.
    Only the tokens that a seat has seen are looked at; a row's draft path is counted for that row alone.
    """

    def __init__(self, controls: Controls) -> None:
        self.controls = controls
        self._counted: dict[int, Counted] = {}  # by seat

    def join(self, request: Request) -> bool:
        params, seat = request.params, request.seat
        if params.repetition_penalty == 1.0 and not params.frequency_penalty and not params.presence_penalty:
            return False
        self._counted[seat] = Counted()
        if params.repetition_penalty != 1.0:
            self._counted[seat].add(self._inside(np.unique(request.prompt_token_ids).tolist()), 0)
        self.commit(seat, request.output_token_ids)
        return True

    def commit(self, seat: int, tokens: list[int]) -> None:
        self._counted[seat].add(self._inside(tokens), 1)

    def leave(self, seat: int) -> None:
        self._counted.pop(seat, None)

    def apply(self, scores: torch.Tensor, rows: SampleRows) -> None:
        seen = [self._seen(seat, path) for seat, path in zip(rows.seats.tolist(), rows.path, strict=True)]
        row, token = scatter_index([tokens for tokens, _ in seen], scores.device)
        counts = torch.from_numpy(np.concatenate([counts for _, counts in seen])).to(scores.device)
        repetition, frequency, presence = (
            self.controls.column(name, rows.seats, scores).squeeze(1)[row]
            for name in ("repetition_penalty", "frequency_penalty", "presence_penalty")
        )
        before = scores[row, token]
        after = torch.where(before > 0, before / repetition, before * repetition)
        scores[row, token] = after - counts * frequency - (counts > 0) * presence

    def edit(self, rows: SampleRows, chosen: Sequence[int], edits: EditList) -> None:
        for row in chosen:
            seat = int(rows.seats[row])
            tokens, counts = self._seen(seat, rows.path[row])
            edits.change(
                row,
                tokens,
                repetition=self.controls.repetition_penalty[seat],
                first=counts.astype(np.float32) * np.float32(self.controls.frequency_penalty[seat]),
                second=(counts > 0) * np.float32(self.controls.presence_penalty[seat]),
            )

    def _seen(self, seat: int, path: np.ndarray) -> tuple[Int64, Int64]:
        return self._counted[seat].with_path(self._inside(path.tolist()))

    def _inside(self, tokens: list[int]) -> list[int]:
        """A draft token outside the vocabulary cannot be accepted: what follows it is never used."""
        return [token for token in tokens if 0 <= token < self.controls.vocab_size]
