"""Sibling by sibling: each is weighed by what the ones before it have left of the target (recursive rejection).

Jeon et al. (2402.14160), for siblings that were drawn without replacement.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.speculation.verify.base import verifiers
from paceline.speculation.verify.tree_ratio import TreeRatioVerifier
from paceline.speculation.verify.trees import Decision, Trees


@verifiers.add("tree")
class TreeVerifier(TreeRatioVerifier):
    """Goes down from the root; a child stands with probability min(1, p / q), else p becomes norm((p - q)+).

    Nodes come behind their parents and their earlier siblings, so one pass in their order makes the whole walk.
    """

    def decide(self, trees: Trees, uniform: Tensor) -> Decision:
        last, left = torch.full_like(trees.counts, -1), trees.p[trees.first]
        thresholds = torch.zeros_like(uniform)
        rejected = torch.zeros_like(trees.counts, dtype=torch.bool)  # whether a child of the last node was
        for number in range(trees.tokens.shape[1]):
            here = ((trees.parents[:, number] == last) & (trees.counts > number)).nonzero().squeeze(-1)
            if not len(here):
                continue
            node, whole = torch.full_like(here, number), torch.ones(len(here), dtype=torch.float64, device=here.device)
            chance = trees.chance(left[here, trees.tokens[here, number]], whole, here, node)
            thresholds[here, number] = chance
            passed = uniform[here, number] < chance
            stands, falls = here[passed], here[~passed]
            last[stands], rejected[stands], rejected[falls] = number, False, True
            left[stands] = trees.p[trees.first[stands] + 1 + number]
            left[falls], _ = trees.rejected(left[falls], whole[~passed], falls, node[~passed])
        return Decision(last, left, ~rejected | ~(left.amax(-1) > 0), thresholds)
