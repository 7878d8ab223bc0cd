"""Knows how many tokens each seat keeps."""

from __future__ import annotations

import torch

from paceline.core.batch import SampleRows
from paceline.core.request import Request
from paceline.sampling.processors.base import Stateless


class TopK(Stateless):
    """Keeps the scores that reach the k-th largest; tokens tied with it are all kept."""

    def join(self, request: Request) -> bool:
        return not request.params.greedy and 0 < request.params.top_k < self.controls.vocab_size

    def apply(self, scores: torch.Tensor, rows: SampleRows) -> None:
        last = torch.from_numpy(self.controls.top_k[rows.seats] - 1).to(scores.device)
        largest = scores.topk(int(self.controls.top_k[rows.seats].max()), dim=-1).values
        scores.masked_fill_(scores < largest.gather(-1, last.unsqueeze(1)), -torch.inf)
