"""Knows how flat each seat wants its distribution."""

from __future__ import annotations

import torch

from paceline.core.batch import SampleRows
from paceline.core.request import Request
from paceline.sampling.processors.base import Stateless


class Temperature(Stateless):
    """Divides by the temperature, after a shift that puts the row's best token at 0.

    The shift changes no probability. Without it a low temperature makes scores so large that adding noise in
    float32 rounds the noise away, or that they overflow.
    """

    def join(self, request: Request) -> bool:
        return not request.params.greedy and request.params.temperature != 1.0

    def apply(self, scores: torch.Tensor, rows: SampleRows) -> None:
        # The clamp keeps a row in which everything is banned at -inf instead of NaN.
        best = scores.amax(-1, keepdim=True).clamp_min_(torch.finfo(scores.dtype).min)
        scores.sub_(best).div_(self.controls.column("temperature", rows.seats, scores))
