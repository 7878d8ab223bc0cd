"""Knows each seat's forbidden token sequences and when the next token would complete one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from paceline.core.batch import SampleRows
from paceline.core.request import Request
from paceline.sampling.controls import Controls
from paceline.sampling.edits import EditList
from paceline.sampling.processors.base import ban

Words = dict[int, list[tuple[int, ...]]]


class BadWords:
    """Bans a bad word's last token where the tokens before it are the word's others.

    As in vLLM only output tokens are context: a word that begins in the prompt may be completed.
    """

    def __init__(self, controls: Controls) -> None:
        self.controls = controls
        self._single: dict[int, np.ndarray] = {}  # seat -> tokens that are words by themselves
        self._longer: dict[int, Words] = {}  # seat -> longer words, by the token before the last
        self._context: dict[int, int] = {}  # seat -> most tokens of context that a word needs

    def join(self, request: Request) -> bool:
        words = [word for word in request.group.bad_words_token_ids if self._can_be_completed(word)]
        if not words:
            return False
        longer: Words = defaultdict(list)
        for word in words:
            if len(word) > 1:
                longer[word[-2]].append(word)
        self._single[request.seat] = np.array([word[0] for word in words if len(word) == 1], dtype=np.int64)
        self._longer[request.seat] = dict(longer)
        self._context[request.seat] = max(map(len, words)) - 1
        return True

    def _can_be_completed(self, word: tuple[int, ...]) -> bool:
        return len(word) > 0 and 0 <= word[-1] < self.controls.vocab_size

    def commit(self, seat: int, tokens: list[int]) -> None:
        pass  # The context is read from the request's output.

    def leave(self, seat: int) -> None:
        for kept in (self._single, self._longer, self._context):
            kept.pop(seat, None)

    def apply(self, scores: torch.Tensor, rows: SampleRows) -> None:
        ban(scores, [self._banned(seat, rows.path[row]) for row, seat in enumerate(rows.seats.tolist())])

    def edit(self, rows: SampleRows, chosen: Sequence[int], edits: EditList) -> None:
        for row in chosen:
            edits.ban(row, self._banned(int(rows.seats[row]), rows.path[row]))

    def _banned(self, seat: int, path: np.ndarray) -> np.ndarray:
        longer = self._longer[seat]
        if not longer:
            return self._single[seat]
        history = self._history(seat, path)
        completed = [
            word[-1]
            for word in longer.get(history[-1] if history else -1, ())
            if len(word) <= len(history) + 1 and word[:-1] == history[len(history) + 1 - len(word) :]
        ]
        return np.concatenate([self._single[seat], np.array(completed, dtype=np.int64)])

    def _history(self, seat: int, path: np.ndarray) -> tuple[int, ...]:
        length = self._context[seat]
        known = self.controls.seats.at(seat).output_token_ids[-length:]
        return tuple([*known, *path[path >= 0].tolist()][-length:])
