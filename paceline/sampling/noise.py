"""Adds a seat's noise to its scores, only where the noise can matter; knows nothing of controls.

Shape letters: R rows, V vocabulary, N candidate tokens of all rows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from paceline.core.batch import SampleRows
from paceline.kernels.philox import GUMBEL_MAX, GUMBEL_MIN, Domain, gumbel, gumbel_rows
from paceline.sampling.controls import Controls

POINTWISE_COST = 6
"""Noise of one candidate costs about this many tokens of a dense row."""
POINTWISE_START = 2048
"""... and starting it costs about this many."""


class Noise:
    """Gumbel noise of the seats' seeds and sample indexes, for rows that each decide one output token."""

    def __init__(self, controls: Controls) -> None:
        self._controls = controls
        # Counting candidates would stall a GPU, which evaluates every token in about the same time.
        self._prunes = controls.device.type == "cpu"

    def add(self, scores: Tensor, rows: SampleRows) -> Tensor:
        """f[R, V]: scores plus target noise, in the scores' dtype; tokens that cannot be the best may be -inf.

        Noise lies between two bounds, so a token whose score is too far below the row's best cannot win. Rounding
        keeps order, hence the argmax is that of ``dense`` noise bit for bit.
        """
        if self._prunes:
            candidates = _candidates(scores)  # [R, V]
            if int(candidates.count_nonzero()) * POINTWISE_COST + POINTWISE_START < scores.numel():
                row, token = candidates.nonzero(as_tuple=True)
                seed, sample_index, output_index = (column[row] for column in self._columns(rows, scores.device))
                noise = gumbel(seed, sample_index, output_index, Domain.TARGET, token).to(scores.dtype)
                return torch.full_like(scores, -torch.inf).index_put_((row, token), scores[row, token] + noise)
        return scores + self.dense(rows, scores.dtype, Domain.TARGET)

    def dense(self, rows: SampleRows, dtype: torch.dtype, domain: Domain) -> Tensor:
        """f[R, V] the noise of every token."""
        columns = self._columns(rows, self._controls.device)
        return gumbel_rows(*columns, domain, self._controls.vocab_size, dtype=dtype)

    def _columns(self, rows: SampleRows, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        seats = rows.seats
        arrays = (self._controls.seed[seats], self._controls.sample_index[seats], rows.output_index.astype(np.int64))
        seed, sample_index, output_index = (torch.from_numpy(array).to(device) for array in arrays)
        return seed, sample_index, output_index


def _candidates(scores: Tensor) -> Tensor:
    least = scores.amax(-1, keepdim=True) + GUMBEL_MIN
    return (scores + GUMBEL_MAX >= least) & (scores > -torch.inf)
