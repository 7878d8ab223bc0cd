"""Samples with torch's operations, in any dtype and on any device; the definition that other samplers must meet.

Shape letters: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paceline.core.batch import Int32, Int64, SampleRows
from paceline.core.outputs import TokenLogprobs
from paceline.sampling import logprobs
from paceline.sampling.noise import Noise
from paceline.sampling.scores import BANNED, NAN, best_tokens, compute_dtype, processed, row_index, take_rows
from paceline.sampling.state import SamplingState

Choice = Callable[[Tensor, SampleRows], Tensor]
Bool = npt.NDArray[np.bool_]


class TorchSampler:
    """Rows without controls are neither copied nor processed, and greedy rows draw no noise."""

    def __init__(self, state: SamplingState) -> None:
        self._state = state
        self._noise = Noise(state)

    def sample(self, logits: Tensor, rows: SampleRows) -> Int64:
        controlled: Bool = np.any(self._state.active[rows.seats], axis=1)
        tokens = _by_kind(controlled, logits, rows, self._with_controls, self._choose)
        result: Int64 = tokens.cpu().numpy()
        return result

    def logprobs(self, logits: Tensor, rows: list[int], tokens: list[int], top: list[int]) -> list[TokenLogprobs]:
        return logprobs.in_torch(logits, rows, tokens, top)

    def best(self, logits: Tensor, count: int) -> tuple[Int32, npt.NDArray[np.float64]]:
        return logprobs.best_in_torch(logits, count)

    def edits(self, seats: Int32) -> bool:  # noqa: ARG002
        return False

    def can_plan(self, rows: SampleRows, *, at_once: bool) -> bool:  # noqa: ARG002
        return False

    def native(self, rows: SampleRows, *, at_once: bool) -> None:  # noqa: ARG002
        return None

    def _with_controls(self, logits: Tensor, rows: SampleRows) -> Tensor:
        tokens = self._choose(processed(self._state, logits, rows), rows)
        # A ban may have covered the NaN that says this row's numbers cannot be trusted.
        best = logits.amax(-1)
        tokens.masked_fill_((tokens == NAN) & (best > -torch.inf), BANNED)
        return tokens.masked_fill_(best.isnan(), NAN)

    def _choose(self, scores: Tensor, rows: SampleRows) -> Tensor:
        greedy = self._state.greedy[rows.seats]
        return _by_kind(greedy, scores, rows, lambda scores, _: best_tokens(scores), self._draw)

    def _draw(self, scores: Tensor, rows: SampleRows) -> Tensor:
        return best_tokens(self._noise.add(scores.to(compute_dtype(scores)), self._noise.keys(rows)))


def _by_kind(kind: Bool, scores: Tensor, rows: SampleRows, where_true: Choice, where_false: Choice) -> Tensor:
    """int64[R]: each row's token by ``where_true`` or ``where_false``; each sees only its own rows."""
    if not kind.any():
        return where_false(scores, rows)
    if kind.all():
        return where_true(scores, rows)
    tokens = torch.empty(len(rows), dtype=torch.int64, device=scores.device)
    for chosen, choose in ((np.flatnonzero(kind), where_true), (np.flatnonzero(~kind), where_false)):
        here = row_index(chosen, scores.device)
        tokens[here] = choose(scores[here], take_rows(rows, chosen))
    return tokens
