"""Knows how small a share of the best token's probability each seat still accepts."""

from __future__ import annotations

import torch

from paceline.core.batch import SampleRows
from paceline.core.request import Request
from paceline.sampling.processors.base import Stateless


class MinP(Stateless):
    """Bans tokens less likely than ``min_p`` times the likeliest, after temperature.

    Compares scores with the row's best score + log(min_p): the same test without a sum over the vocabulary.
    """

    def join(self, request: Request) -> bool:
        return not request.params.greedy and request.params.min_p > 0

    def apply(self, scores: torch.Tensor, rows: SampleRows) -> None:
        least = scores.amax(-1, keepdim=True) + self.controls.column("min_p_margin", rows.seats, scores)
        scores.masked_fill_(scores < least, -torch.inf)
