"""Adds a seat's noise to its scores, only where the noise can matter; knows nothing of controls.

Shape letters: R rows, V vocabulary, N candidate tokens of all rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from paceline.core.batch import Int64, SampleRows
from paceline.kernels.philox import (
    DEPTH_SHIFT,
    GUMBEL_MAX,
    GUMBEL_MIN,
    PLACE_SHIFT,
    Domain,
    gumbel,
    gumbel_rows,
    uniform,
)
from paceline.sampling.controls import Controls

POINTWISE_COST = 6
"""Noise of one candidate costs about this many tokens of a dense row."""
POINTWISE_START = 2048
"""... and starting it costs about this many."""


class NoiseKeys(NamedTuple):
    """What each row's noise depends on besides the token; int64[R] each."""

    seed: Tensor
    sample_index: Tensor
    output_index: Tensor
    domain: Tensor

    def take(self, chosen: Tensor) -> NoiseKeys:
        return NoiseKeys(*(column[chosen] for column in self))


class Noise:
    """Gumbel noise of the seats' seeds and sample indexes, for rows that each decide one output token."""

    def __init__(self, controls: Controls) -> None:
        self._controls = controls
        # Counting candidates would stall a GPU, which evaluates every token in about the same time.
        self._prunes = controls.device.type == "cpu"

    def keys(self, rows: SampleRows, domain: Domain = Domain.TARGET, places: Int64 | None = None) -> NoiseKeys:
        """The keys of ``rows``; in domains that belong to a draft, a row's depth in it is part of the key.

        So is its place int64[R] among the nodes of that depth, where a draft may have several; in a chain it is 0.
        An output index is drafted anew, at a smaller depth, after a draft of which only a part stood. What became of
        that draft may tell of the noise of all its depths, so the next one must not draw the same numbers again.
        """
        device, stream = self._controls.device, np.full(len(rows), int(domain), dtype=np.int64)
        if domain is not Domain.TARGET:
            stream |= np.count_nonzero(rows.path >= 0, axis=1) << DEPTH_SHIFT
            if places is not None:
                stream |= places << PLACE_SHIFT
        seed, sample_index = self._controls.seed[rows.seats], self._controls.sample_index[rows.seats]
        arrays = (seed, sample_index, rows.output_index.astype(np.int64), stream)
        return NoiseKeys(*(torch.from_numpy(array).to(device) for array in arrays))

    def add(self, scores: Tensor, keys: NoiseKeys) -> Tensor:
        """f[R, V]: scores plus noise, in the scores' dtype; tokens that cannot be the best may be -inf.

        Noise lies between two bounds, so a token whose score is too far below the row's best cannot win. Rounding
        keeps order, hence the argmax is that of ``dense`` noise bit for bit.
        """
        if self._prunes:
            candidates = _candidates(scores)  # [R, V]
            if int(candidates.count_nonzero()) * POINTWISE_COST + POINTWISE_START < scores.numel():
                row, token = candidates.nonzero(as_tuple=True)
                noise = gumbel(*keys.take(row), token).to(scores.dtype)
                return torch.full_like(scores, -torch.inf).index_put_((row, token), scores[row, token] + noise)
        return scores + self.dense(keys, scores.dtype)

    def dense(self, keys: NoiseKeys, dtype: torch.dtype) -> Tensor:
        """f[R, V] the noise of every token."""
        return gumbel_rows(*keys, self._controls.vocab_size, dtype=dtype)

    def uniform(self, keys: NoiseKeys) -> Tensor:
        """f64[R]: a number in (0, 1) per row."""
        return uniform(*keys, torch.zeros_like(keys.seed))


def _candidates(scores: Tensor) -> Tensor:
    least = scores.amax(-1, keepdim=True) + GUMBEL_MIN
    return (scores + GUMBEL_MAX >= least) & (scores > -torch.inf)
