"""Bottom-up: a leaf may stand although a node above it would have failed (Weng et al., traversal, 2505.12398).

On a chain it keeps what ``block`` keeps.
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache

import torch
from torch import Tensor

from paceline.speculation.verify.base import verifiers
from paceline.speculation.verify.tree_ratio import TreeRatioVerifier
from paceline.speculation.verify.trees import Decision, Trees


@verifiers.add("traversal")
class TraversalVerifier(TreeRatioVerifier):
    """Tries the first leaf that remains: it stands, with its path, with the probability that is its scale.

    The scale of a node is min(1, scale of its parent * p / q), and 1 of the root. A leaf that falls is taken out: its
    parent keeps the excess of scale * p over q, and a scale that makes up for what was tried.
    """

    def decide(self, trees: Trees, uniform: Tensor) -> Decision:
        num_requests, width = trees.tokens.shape
        left, first = trees.p.clone(), trees.first
        scales = torch.ones(num_requests, width + 1, dtype=torch.float64, device=first.device)  # of node - 1
        last, thresholds = torch.full_like(trees.counts, -1), torch.zeros_like(uniform)
        walking, rejected = torch.ones_like(last, dtype=torch.bool), torch.zeros_like(scales, dtype=torch.bool)
        for turn in _turns(trees).unbind(1):
            here = (walking & (turn >= 0) & (turn < width)).nonzero().squeeze(-1)
            if len(here):
                node = turn[here]
                parent = trees.parents[here, node]
                likely = left[first[here] + 1 + parent, trees.tokens[here, node]]
                scales[here, node + 1] = trees.chance(likely, scales[here, parent + 1], here, node)
            here = (walking & (turn >= width)).nonzero().squeeze(-1)
            if len(here):
                node = turn[here] - width
                thresholds[here, node] = scales[here, node + 1]
                passed = uniform[here, node] < thresholds[here, node]
                last[here[passed]], walking[here[passed]] = node[passed], False
                here, node = here[~passed], node[~passed]
                parent = trees.parents[here, node]
                row = first[here] + 1 + parent
                left[row], scales[here, parent + 1] = trees.rejected(left[row], scales[here, parent + 1], here, node)
                rejected[here, parent + 1] = True
        left = left[first + 1 + last]
        tried = rejected.gather(-1, last[:, None] + 1).squeeze(-1)
        return Decision(last, left, ~tried | ~(left.amax(-1) > 0), thresholds)


def _turns(trees: Trees) -> Tensor:
    """int64[B, 2 N] in which order nodes are entered, n, and tried, N + n, each behind all that lies below it; -1
    pads."""
    width = trees.tokens.shape[1]
    found = torch.full((len(trees.counts), 2 * width), -1)
    for number, (parents, count) in enumerate(zip(trees.parents.tolist(), trees.counts.tolist(), strict=True)):
        order = torch.tensor(_depth_first(tuple(parents[:count])), dtype=torch.int64)
        found[number, : len(order)] = torch.where(order < 0, width + ~order, order)
    return found.to(trees.parents.device)


@lru_cache(256)
def _depth_first(parents: tuple[int, ...]) -> tuple[int, ...]:
    """n where node n is entered, ~n where all nodes below it have been left."""
    children: dict[int, list[int]] = defaultdict(list)
    for node, parent in enumerate(parents):
        children[parent].append(node)
    found, stack = [], children[-1][::-1]
    while stack:
        turn = stack.pop()
        found.append(turn)
        if turn >= 0:
            stack += [~turn, *children[turn][::-1]]
    return tuple(found)
