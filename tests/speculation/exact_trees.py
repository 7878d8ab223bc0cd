"""A tree rule's output distribution by full enumeration: every draft of a shape, every pattern of passes, every token.

The rule is run as it is: on probabilities, with uniform numbers that make a node pass or fail. Shape letters: V
vocabulary, N nodes. The end of a text (a row that allows no token) counts as token V.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from paceline.speculation.verify.tree_ratio import TreeRatioVerifier
from paceline.speculation.verify.trees import Decision, Trees
from tests.speculation.exact import Path, World, expand

Draft = tuple[int, ...]
Claim = Callable[[np.ndarray], np.ndarray]


@dataclass
class Forest:
    """Trees of one shape, drafted in a world whose ``depth`` is the shape's."""

    world: World
    parents: tuple[int, ...]
    distinct: bool = True
    """Siblings are drawn without replacement; else each from its parent's whole distribution."""
    claim: Claim | None = None
    """What the drafter makes of a row before it hands it over."""
    claims_whole_rows: bool = False
    """The rows handed over are those of the parents, though siblings are distinct."""
    stop: Callable[[Draft, Forest], int] = lambda draft, forest: len(forest.parents)
    """Of a draft, how many of its nodes are verified."""
    drafts: list[tuple[Draft, float]] = field(init=False)

    def __post_init__(self) -> None:
        self.drafts = list(self._drawn(()))

    def path(self, node: int, draft: Draft) -> Path:
        return () if node < 0 else (*self.path(self.parents[node], draft), draft[node])

    def row(self, node: int, draft: Draft) -> np.ndarray:
        """[V] what ``node`` is drawn from, given the nodes before it; all 0 if nothing is left."""
        whole = self.world.q[self.path(self.parents[node], draft)].copy()
        if self.distinct:
            before = [draft[other] for other in range(node) if self.parents[other] == self.parents[node]]
            whole[before] = 0.0
            whole /= max(whole.sum(), 1e-300)
        return whole

    def claimed(self, node: int, draft: Draft) -> np.ndarray:
        whole = self.claims_whole_rows
        row = replace_distinct(self, distinct=False).row(node, draft) if whole else self.row(node, draft)
        return row if self.claim is None else self.claim(row)

    def _drawn(self, draft: Draft) -> Iterator[tuple[Draft, float]]:
        """Every draft and its probability; one ends before a node for which nothing is left."""
        if len(draft) == len(self.parents):
            yield draft, 1.0
            return
        row = self.row(len(draft), draft)
        if not row.any():
            yield draft, 1.0
        for token in np.flatnonzero(row).tolist():
            for longer, mass in self._drawn((*draft, token)):
                yield longer, row[token] * mass

    def trees(self, dtype: torch.dtype) -> Trees:
        """One request per draft."""
        width, world = len(self.parents), self.world
        full = [(*draft, *[0] * (width - len(draft))) for draft, _ in self.drafts]
        p = [[world.p[self.path(node, draft)] for node in range(-1, width)] for draft in full]
        none = np.full(world.vocab, np.nan)
        q = [
            [self.claimed(node, draft) if node < len(draft) else none for node in range(width)]
            for draft, _ in self.drafts
        ]
        return Trees(
            p=torch.tensor(np.array(p), dtype=dtype).flatten(0, 1),
            first=torch.arange(len(full)) * (width + 1),
            q=None if world.certain else torch.tensor(np.array(q), dtype=dtype),
            tokens=torch.tensor(full),
            parents=torch.tensor(self.parents).expand(len(full), -1),
            counts=torch.tensor([min(len(draft), self.stop(draft, self)) for draft, _ in self.drafts]),
        )


def replace_distinct(forest: Forest, *, distinct: bool) -> Forest:
    """Without drawing all drafts anew."""
    other = object.__new__(Forest)
    other.__dict__ = {**forest.__dict__, "distinct": distinct}
    return other


def certain(forest: Forest) -> Forest:
    return replace(forest, world=replace(forest.world, certain=True))


@dataclass
class TreeOutcome:
    joint: np.ndarray  # [V + 1] * (D + 1)
    accepted: float
    """Expected number of draft tokens that stand."""


def tree_outcome(rule: TreeRatioVerifier, forest: Forest, dtype: torch.dtype = torch.float64) -> TreeOutcome:
    """What comes out of one round of verification, continued by the target."""
    trees, world = forest.trees(dtype), forest.world
    found = TreeOutcome(np.zeros([world.vocab + 1] * (world.depth + 1)), 0.0)
    for pattern in itertools.product([False, True], repeat=len(forest.parents)):
        passes = torch.tensor(pattern).expand(len(forest.drafts), -1)
        decision = rule.decide(trees, torch.where(passes, 0.0, 1.0).double())
        weights = torch.where(passes, decision.thresholds, 1.0 - decision.thresholds).prod(-1).tolist()
        _file(found, forest, decision, weights)
    return found


def _file(found: TreeOutcome, forest: Forest, decision: Decision, weights: list[float]) -> None:
    last, plain, left = decision.last.tolist(), decision.plain.tolist(), decision.left.double().numpy()
    for number, ((draft, mass), weight) in enumerate(zip(forest.drafts, weights, strict=True)):
        if weight <= 0:
            continue
        kept = forest.path(last[number], draft)
        found.accepted += weight * mass * len(kept)
        if plain[number]:
            expand(found.joint, forest.world, kept, weight * mass)
            continue
        row = left[number] / left[number].sum()
        for token in np.flatnonzero(row).tolist():
            expand(found.joint, forest.world, (*kept, token), weight * mass * row[token])
