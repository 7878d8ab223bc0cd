"""Token by token: each draft token stands with probability min(1, p / q), up to the first that does not.

Leviathan et al. (2211.17192), Chen et al. (2302.01318).
"""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.speculation.verify.base import verifiers
from paceline.speculation.verify.chains import Chains
from paceline.speculation.verify.ratio import RatioVerifier


@verifiers.add("token")
class TokenVerifier(RatioVerifier):
    """Accepts a token with probability 1 - TV(p, q); what replaces the first rejected one follows (p - q)+."""

    def thresholds(self, chains: Chains) -> tuple[Tensor, Tensor]:
        ratios = chains.ratios().clamp_(max=1.0)
        return ratios, torch.ones(len(ratios), ratios.shape[1] + 1, dtype=ratios.dtype, device=ratios.device)

    def accepted(self, passed: Tensor) -> Tensor:
        return passed.long().cumprod(-1).sum(-1)
