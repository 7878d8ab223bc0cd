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
        limits = torch.finfo(scores.dtype)
        # Finite, so that a row in which everything is banned stays -inf instead of becoming NaN.
        best = scores.amax(-1, keepdim=True).clamp_(limits.min, limits.max)
        # Above 0 in this dtype too, so that the best token stays 0 instead of becoming NaN.
        temperature = self.controls.column("temperature", rows.seats, scores).clamp_min_(limits.tiny)
        scores.sub_(best).div_(temperature)
