"""The whole block at once: a draft token may stand although one before it failed (Sun et al., 2403.10444).

Of all rules for one sampled chain it keeps the most tokens on average.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.speculation.verify.base import verifiers
from paceline.speculation.verify.chains import Chains
from paceline.speculation.verify.ratio import RatioVerifier


@verifiers.add("block")
class BlockVerifier(RatioVerifier):
    """Accepts up to the deepest token that passes; what follows it is drawn from (rho p - q)+.

    rho of a depth is min(1, rho of the depth before * p / q): the probability that a draft token stands, given the
    draft up to it.
    """

    def thresholds(self, chains: Chains) -> tuple[Tensor, Tensor]:
        rho = [torch.ones(len(chains.counts), dtype=torch.float64, device=chains.counts.device)]
        for ratio in chains.ratios().unbind(-1):
            rho.append((rho[-1] * ratio).clamp(max=1.0))
        scales = torch.stack(rho, dim=1)
        reached = scales[:, 1:]
        excess = chains.excess(reached)
        room = excess + 1.0 - reached
        return torch.where(room > 0, excess / room, 1.0), scales

    def accepted(self, passed: Tensor) -> Tensor:
        depth = torch.arange(1, passed.shape[1] + 1, device=passed.device)
        return (passed * depth).amax(-1)
