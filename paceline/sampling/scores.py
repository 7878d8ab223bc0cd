"""What rows of scores are: processed logits, and the best of them; knows neither noise nor single controls.

Shape letters: R rows, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paceline.core.batch import SampleRows
from paceline.sampling.state import SamplingState

NAN = -1
"""In place of a token: the row's numbers cannot be trusted."""
BANNED = -2
"""In place of a token: the row's controls allow none."""


def compute_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def processed(state: SamplingState, logits: Tensor, rows: SampleRows) -> Tensor:
    """``logits`` [R, V] after the processors, in a new tensor."""
    scores = logits.to(compute_dtype(logits), copy=True)
    process(state, scores, rows, len(state.processors))
    return scores


def process(state: SamplingState, scores: Tensor, rows: SampleRows, stop: int) -> None:
    """Applies the processors before number ``stop`` to ``scores`` [R, V], each to the rows that it acts on."""
    for index, processor in enumerate(state.processors[:stop]):
        acted_on = state.active[rows.seats, index]
        if acted_on.all() and len(rows):
            processor.apply(scores, rows)
        elif acted_on.any():
            chosen = np.flatnonzero(acted_on)
            here = row_index(chosen, scores.device)
            part = scores[here]
            processor.apply(part, take_rows(rows, chosen))
            scores[here] = part


def best_tokens(scores: Tensor) -> Tensor:
    """int64[R]: the lowest of the best tokens of each row of ``scores`` [R, V]; NAN where the best is NaN or -inf."""
    best, tokens = scores.max(-1)
    return tokens.masked_fill_(~(best > -torch.inf), NAN)


def take_rows(rows: SampleRows, chosen: npt.NDArray[np.int64]) -> SampleRows:
    return SampleRows(rows.seats[chosen], rows.output_index[chosen], rows.path[chosen])


def row_index(chosen: npt.NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(chosen).to(device)
