"""Knows how much of the probability each seat keeps."""

from __future__ import annotations

import torch

from paceline.core.batch import SampleRows
from paceline.core.request import Request
from paceline.sampling.controls import Controls
from paceline.sampling.processors.base import Stateless

UNITS = 2.0**40
"""Integer mass of the likeliest token. Sums over a vocabulary of up to 2**22 fit int64."""
FIRST_WIDTH = 64
GROWTH = 16


class TopP(Stateless):
    """Keeps the smallest set of likeliest tokens whose probability, among those still allowed, reaches ``top_p``.

    The set is given by its last token's score: tokens tied with it are all kept, as in nucleus sampling (Holtzman
    et al. 2020) made independent of token order. Probabilities are summed as integers, in units of 2**-40 of the
    likeliest token: an exact sum is the same in any order, so the set depends neither on how many rows run
    together nor on whether a few tokens or all of them were sorted.
    """

    def __init__(self, controls: Controls) -> None:
        super().__init__(controls)
        # Looking whether a few tokens were enough would stall a GPU, which sorts quickly.
        self._grows = controls.device.type == "cpu"

    def join(self, request: Request) -> bool:
        return not request.params.greedy and request.params.top_p < 1.0

    def apply(self, scores: torch.Tensor, rows: SampleRows) -> None:
        mass = (scores - scores.amax(-1, keepdim=True)).exp_().mul_(UNITS)
        # A row without a best token (all banned, or NaN) gets no mass; it keeps what it has.
        mass = mass.nan_to_num_(nan=0.0).round_().long()  # [R, V]
        total = mass.sum(-1, keepdim=True)
        share = self.controls.column("top_p", rows.seats, scores.new_empty(0, dtype=torch.float64))
        needed = torch.minimum((total * share).ceil_().long(), total)  # [R, 1]
        scores.masked_fill_(scores < self._last_kept(scores, mass, needed), -torch.inf)

    def _last_kept(self, scores: torch.Tensor, mass: torch.Tensor, needed: torch.Tensor) -> torch.Tensor:
        """[R, 1] the score of the last token of the smallest set that holds ``needed``."""
        vocab_size = scores.shape[-1]
        width = FIRST_WIDTH if self._grows else vocab_size
        while width < vocab_size:
            largest = scores.topk(width, dim=-1)
            reached = mass.gather(-1, largest.indices).cumsum(-1)
            if bool((reached[:, -1:] >= needed).all()):
                return self._at(largest.values, reached, needed)
            width *= GROWTH
        ordered = scores.sort(dim=-1, descending=True)
        return self._at(ordered.values, mass.gather(-1, ordered.indices).cumsum(-1), needed)

    @staticmethod
    def _at(values: torch.Tensor, reached: torch.Tensor, needed: torch.Tensor) -> torch.Tensor:
        return values.gather(-1, (reached < needed).sum(-1, keepdim=True))
