"""Drafts that are chains beside what the target makes of them; knows distributions, not how tokens are decided.

Shape letters: B requests, K depth of the longest draft, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Chains:
    """Both sides of a step. Draft token i (from 0) was drawn from ``q[:, i]`` and is judged by ``p[:, i]``.

    A row of ``p`` is 0 everywhere where the target has no token; the text then ends there, as if with a token of its
    own that has probability 1 and is never drafted. Past a request's own draft ``p`` holds anything.
    """

    p: Tensor  # f[B, K + 1, V]
    q: Tensor | None  # f[B, K, V]; None where every draft token was certain
    tokens: Tensor  # int64[B, K] within the vocabulary, also where unused
    counts: Tensor  # int64[B] draft tokens in use

    def ratios(self) -> Tensor:
        """f64[B, K]: p / q of each draft token, 0 past the draft."""
        index = self.tokens.unsqueeze(-1)
        p = self.p[:, :-1].gather(-1, index).squeeze(-1).double()
        q = 1.0 if self.q is None else self.q.gather(-1, index).squeeze(-1).double()
        return (p / q).masked_fill(~self._drafted(), 0.0)

    def excess(self, scale: Tensor) -> Tensor:
        """f64[B, K]: what ``scale`` [B, K] times the p after each draft token has in excess of the q there.

        After a draft's last token q is 0.
        """
        p, drafted = self.p[:, 1:], self._drafted()[:, 1:]
        if self.q is None:
            over = scale[:, :-1] * (1.0 - p[:, :-1].gather(-1, self.tokens[:, 1:, None]).squeeze(-1).double())
        else:
            scaled = scale[:, :-1, None].to(p.dtype) * p[:, :-1]
            over = scaled.sub_(self.q[:, 1:]).clamp_(min=0.0).sum(-1).double()
            over = over.where(p[:, :-1].amax(-1) > 0, scale[:, :-1])
        return torch.cat([over.where(drafted, scale[:, :-1]), scale[:, -1:]], dim=1)

    def behind(self, accepted: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """What the token behind ``accepted`` [B] draft tokens is drawn from, for which ``scale`` [B] is the p's factor.

        f[B, V], not normalised: scale * p less the q of the rejected token; and bool[B], true where p itself is meant
        instead, since nothing was rejected, or rounding left nothing of the difference.
        """
        request = torch.arange(len(self.counts), device=self.counts.device)
        p = self.p[request, accepted]
        scaled = scale[:, None].to(p.dtype) * p
        rejected = accepted.clamp(max=self.tokens.shape[1] - 1)
        if self.q is None:
            residual = scaled.scatter(-1, self.tokens[request, rejected, None], 0.0)
        else:
            residual = scaled.sub_(self.q[request, rejected]).clamp_(min=0.0)
        return residual, (accepted == self.counts) | ~(residual.amax(-1) > 0)

    def _drafted(self) -> Tensor:
        """bool[B, K]"""
        depth = torch.arange(self.tokens.shape[1], device=self.counts.device)
        return depth < self.counts[:, None]
