"""Knows how much of the probability each seat keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.core.batch import SampleRows
from paceline.core.request import Request
from paceline.sampling.controls import Controls
from paceline.sampling.processors.base import Stateless

UNITS = 2.0**40
"""Integer mass of the likeliest token. Sums over a vocabulary of up to 2**22 fit int64."""
DEEPEST = 29.0
"""Scores this far below the best have less than half a unit of mass."""
NUM_BUCKETS = 4096
FIRST_WIDTH = 64
SECOND_WIDTH = 256


class TopP(Stateless):
    """Keeps the smallest set of likeliest tokens whose probability, among those still allowed, reaches ``top_p``.

    The set is given by its last token's score: tokens tied with it are all kept, as in nucleus sampling (Holtzman
    et al. 2020) made independent of token order. Probabilities are summed as integers, in units of 2**-40 of the
    likeliest token: an exact sum is the same in any order, so the set depends neither on how many rows run
    together nor on how it was found.
    """

    def __init__(self, controls: Controls) -> None:
        super().__init__(controls)
        # Looking whether a few tokens are enough would stall a GPU, which sorts quickly.
        self._looks = controls.device.type == "cpu"

    def join(self, request: Request) -> bool:
        return not request.params.greedy and request.params.top_p < 1.0

    def apply(self, scores: Tensor, rows: SampleRows) -> None:
        # In float64, where any good exponential rounds to the same integers.
        mass = (scores - scores.amax(-1, keepdim=True)).double().exp_().mul_(UNITS)
        # A row without a best token (all banned, or NaN) gets no mass; it keeps what it has.
        mass = mass.nan_to_num_(nan=0.0).round_().long()  # [R, V]
        total = mass.sum(-1, keepdim=True)
        share = self.controls.column("top_p", rows.seats, scores.new_empty(0, dtype=torch.float64))
        needed = torch.minimum((total * share).ceil_().long(), total)  # [R, 1]
        scores.masked_fill_(scores < self._last_kept(scores, mass, needed), -torch.inf)

    def _last_kept(self, scores: Tensor, mass: Tensor, needed: Tensor) -> Tensor:
        """[R, 1] the score of the last token of the smallest set that holds ``needed`` [R, 1] of ``mass`` [R, V]."""
        if self._looks:
            found = _among_largest(scores, mass, needed, FIRST_WIDTH)
            if found is not None:
                return found
            inside, needed = _narrow(scores, mass, needed)
            scores, mass, lowest = scores.where(inside, -torch.inf), mass * inside, scores.where(inside, torch.inf)
            highest = scores.amax(-1, keepdim=True)
            if torch.equal(lowest.amin(-1, keepdim=True), highest):
                return highest
            found = _among_largest(scores, mass, needed, SECOND_WIDTH)
            if found is not None:
                return found
        ordered = scores.sort(dim=-1, descending=True)
        return _at(ordered.values, mass.gather(-1, ordered.indices).cumsum(-1), needed)


def _among_largest(scores: Tensor, mass: Tensor, needed: Tensor, width: int) -> Tensor | None:
    """The last kept score [R, 1] if the ``width`` likeliest tokens of every row hold what is needed."""
    largest = scores.topk(min(width, scores.shape[-1]), dim=-1)
    reached = mass.gather(-1, largest.indices).cumsum(-1)
    return _at(largest.values, reached, needed) if bool((reached[:, -1:] >= needed).all()) else None


def _at(values: Tensor, reached: Tensor, needed: Tensor) -> Tensor:
    return values.gather(-1, (reached < needed).sum(-1, keepdim=True))


def _narrow(scores: Tensor, mass: Tensor, needed: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens whose scores lie in the same narrow bucket as the last kept one, and the mass needed of these.

    A histogram of mass over buckets of equal width in score finds the bucket without any sorting. bool[R, V], [R, 1].
    """
    depth = (scores.amax(-1, keepdim=True) - scores).mul_(NUM_BUCKETS / DEEPEST)
    bucket = depth.nan_to_num_(nan=0.0).clamp_(max=NUM_BUCKETS - 1).long()
    histogram = mass.new_zeros(len(scores), NUM_BUCKETS).scatter_add_(-1, bucket, mass)
    reached = histogram.cumsum(-1)
    last = (reached < needed).sum(-1, keepdim=True)
    return bucket == last, needed - (reached - histogram).gather(-1, last)
