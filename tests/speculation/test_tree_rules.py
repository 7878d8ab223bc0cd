"""The tree rules follow the target exactly, by enumeration; each way to spoil them shows in the enumeration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from paceline.speculation.verify import BlockVerifier, TokenVerifier, TraversalVerifier, TreeVerifier, traversal
from paceline.speculation.verify.tree_ratio import TreeRatioVerifier
from paceline.speculation.verify.trees import Decision, Trees
from tests.speculation.exact import outcome, random_world, target_joint
from tests.speculation.exact_trees import Draft, Forest, certain, tree_outcome

RULES = [TreeVerifier(), TraversalVerifier()]
by_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
EXACT = 1e-12
SEEN = 1e-3
"""Total variation of a bias that counts as caught."""

SHAPES = {
    "chain": (-1, 0, 1),
    "star": (-1, -1, -1),
    "two by two": (-1, -1, 0, 0, 1, 1),
    "lopsided": (-1, -1, 0, 0, 2),
    "late sibling": (-1, 0, 1, -1, 0),  # numbered behind its elder siblings' descendants
    "second child grows": (-1, -1, 1, 1, 3),
}


def depth_of(parents: tuple[int, ...]) -> int:
    depths: list[int] = []
    for parent in parents:
        depths.append(1 if parent < 0 else depths[parent] + 1)
    return max(depths)


def forests(shape: str, seed: int, count: int = 2, **options: float) -> list[Forest]:
    parents = SHAPES[shape]
    return [Forest(random_world(seed + n, depth=depth_of(parents), **options), parents) for n in range(count)]


def bias(rule: TreeRatioVerifier, forest: Forest, dtype: torch.dtype = torch.float64) -> float:
    found = tree_outcome(rule, forest, dtype).joint
    return float(abs(found - target_joint(forest.world)).sum() / 2)


WORLDS = {"plain": {"zeros": 0.0}, "zeros": {"zeros": 0.4}, "dead ends": {"dead": 0.3}}


@by_rule
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_comes_out_is_the_target(rule: TreeRatioVerifier, shape: str, world: str) -> None:
    for forest in forests(shape, 10 * len(shape), **WORLDS[world]):
        found = tree_outcome(rule, forest).joint
        assert abs(found.sum() - 1) < EXACT
        np.testing.assert_allclose(found, target_joint(forest.world), atol=EXACT)
        assert bias(rule, certain(forest)) < EXACT


@by_rule
@pytest.mark.parametrize("shape", SHAPES)
def test_single_precision_costs_no_more_than_its_rounding(rule: TreeRatioVerifier, shape: str) -> None:
    for forest in forests(shape, 90, count=2, zeros=0.2):
        assert bias(rule, forest, torch.float32) < 1e-6


@by_rule
def test_siblings_may_be_drawn_with_replacement(rule: TreeRatioVerifier) -> None:
    """Each row is what its own node was drawn from: then a whole row, also for a sibling that repeats another."""
    for forest in forests("second child grows", 200, count=1, zeros=0.0) + forests("star", 210, zeros=0.3):
        repeated = replace(forest, distinct=False)
        assert bias(rule, repeated) < EXACT
        assert bias(rule, certain(repeated)) < EXACT


def test_on_a_chain_the_rules_are_those_of_chains() -> None:
    for seed in range(300, 306):
        world = random_world(seed, depth=3, zeros=0.2)
        forest = Forest(world, SHAPES["chain"])
        for tree, chain in ((RULES[0], TokenVerifier()), (RULES[1], BlockVerifier())):
            assert tree_outcome(tree, forest).accepted == pytest.approx(outcome(chain, world).accepted, abs=EXACT)


def test_traversal_keeps_more() -> None:
    kept = [
        [tree_outcome(rule, forest).accepted for forest in forests(shape, 400, zeros=0.0)]
        for rule in RULES
        for shape in ("second child grows", "lopsided", "late sibling")
    ]
    tree, bottom_up = np.array(kept).reshape(2, -1)
    assert (bottom_up > tree - EXACT).all()
    assert bottom_up.sum() > 1.01 * tree.sum()


@by_rule
def test_certain_children_stand_as_often_as_the_target_says(rule: TreeRatioVerifier) -> None:
    """For a fixed set of candidates nothing can do better: a node stands with its path's own probability."""
    for forest in forests("lopsided", 500, zeros=0.2):
        expected = 0.0
        for draft, mass in forest.drafts:
            for path in {forest.path(node, draft) for node in range(len(draft))}:
                expected += mass * np.prod([forest.world.p[path[:at]][token] for at, token in enumerate(path)])
        assert tree_outcome(rule, certain(forest)).accepted == pytest.approx(expected, abs=EXACT)


# Where a draft may stop.


def stops_behind_token_two(draft: Draft, forest: Forest) -> int:
    """What is verified hangs on nodes before those that are not, also on cousins."""
    return draft.index(2) + 1 if 2 in draft else len(draft)


def stops_before_token_two(draft: Draft, forest: Forest) -> int:
    """It anticipates: a node is dropped for what it turned out to be."""
    return draft.index(2) if 2 in draft else len(draft)


@by_rule
@pytest.mark.parametrize("shape", ["two by two", "late sibling"])
def test_where_a_draft_may_stop(rule: TreeRatioVerifier, shape: str) -> None:
    worlds = forests(shape, 600, count=1, zeros=0.0)
    for forest in worlds:
        assert bias(rule, replace(forest, stop=stops_behind_token_two)) < EXACT
        assert bias(rule, certain(replace(forest, stop=stops_before_token_two))) < EXACT
    assert max(bias(rule, replace(forest, stop=stops_before_token_two)) for forest in worlds) > 0.02


# What drafters get wrong.


def sharpened(row: np.ndarray) -> np.ndarray:
    return row**2 / (row**2).sum()


def flattened(row: np.ndarray) -> np.ndarray:
    return np.sqrt(row) / np.sqrt(row).sum()


@by_rule
@pytest.mark.parametrize("claim", [sharpened, flattened])
def test_a_row_that_was_not_drawn_from_is_caught(
    rule: TreeRatioVerifier, claim: Callable[[np.ndarray], np.ndarray]
) -> None:
    assert max(bias(rule, replace(forest, claim=claim)) for forest in forests("two by two", 700, zeros=0.0)) > SEEN


@by_rule
def test_rows_that_keep_earlier_siblings_are_caught(rule: TreeRatioVerifier) -> None:
    """The parent's row for every sibling is not what a second one was drawn from."""
    for shape in ("star", "two by two"):
        assert max(bias(rule, replace(f, claims_whole_rows=True)) for f in forests(shape, 720, zeros=0.0)) > SEEN


@by_rule
def test_rows_that_are_not_normalised_anew_are_caught(rule: TreeRatioVerifier) -> None:
    def shrunken(row: np.ndarray) -> np.ndarray:
        return row if row.min() > 0 else row * 0.5

    worlds = forests("star", 740, count=6, zeros=0.0) + forests("two by two", 750, zeros=0.0)
    assert max(bias(rule, replace(forest, claim=shrunken)) for forest in worlds) > SEEN


class Spoilt(TreeRatioVerifier):
    """A rule on other trees than those it is given."""

    def __init__(self, rule: TreeRatioVerifier, change: Callable[[Trees], Trees]) -> None:
        self.rule, self.change = rule, change

    def decide(self, trees: Trees, uniform: torch.Tensor) -> Decision:
        return self.rule.decide(self.change(trees), uniform)


def without(trees: Trees, node: int) -> torch.Tensor:
    assert trees.q is not None
    q = trees.q.clone()
    q[:, node] = trees.q[:, 0]
    return q


@by_rule
@pytest.mark.parametrize(
    "change",
    [
        lambda trees: replace(trees, q=without(trees, 1)),  # each sibling is weighed by the first one's row
        lambda trees: replace(trees, p=trees.p.roll(-1, 0)),  # judged by the row behind
        lambda trees: replace(trees, q=torch.where(trees.q > 0, 1.0 / 3, 0.0).to(trees.q.dtype)),
    ],
)
def test_trees_that_are_misread_are_caught(rule: TreeRatioVerifier, change: Callable[[Trees], Trees]) -> None:
    worlds = forests("star", 760, count=6, zeros=0.0)
    spoilt = Spoilt(rule, change)
    assert max(bias(spoilt, forest) for forest in worlds) > SEEN


@by_rule
def test_siblings_in_the_wrong_order_are_caught(rule: TreeRatioVerifier) -> None:
    """A star whose nodes come last to first: the row of the last one knows of the others."""
    worlds = forests("star", 780, zeros=0.0)

    def backwards(trees: Trees) -> Trees:
        assert trees.q is not None
        p = trees.p.view(len(trees.counts), -1, trees.p.shape[-1])
        order = torch.tensor([0, 3, 2, 1])
        return replace(trees, tokens=trees.tokens.flip(1), q=trees.q.flip(1), p=p[:, order].flatten(0, 1))

    class Backwards(Spoilt):
        def decide(self, trees: Trees, uniform: torch.Tensor) -> Decision:
            found = super().decide(trees, uniform.flip(1))
            last = torch.where(found.last < 0, -1, 2 - found.last)
            return replace(found, last=last, thresholds=found.thresholds.flip(1))

    assert max(bias(Backwards(rule, backwards), forest) for forest in worlds) > SEEN


# What rules get wrong.


def rejected_tokens_are_replaced_from_the_target(true: Callable[..., tuple], self: Trees, left: torch.Tensor, *rest):
    return left, true(self, left, *rest)[1]


def the_residual_is_not_normalised(true: Callable[..., tuple], self: Trees, left: torch.Tensor, *rest):
    found, scale = true(self, left, *rest)
    return found * 0.8, scale


def the_scale_stays_as_it_was(true: Callable[..., tuple], self: Trees, left: torch.Tensor, scale: torch.Tensor, *rest):
    return true(self, left, scale, *rest)[0], scale


PLANTS = [
    rejected_tokens_are_replaced_from_the_target,
    the_residual_is_not_normalised,
    the_scale_stays_as_it_was,
]


@by_rule
@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_a_spoilt_rule_is_caught(
    rule: TreeRatioVerifier, plant: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    true = Trees.rejected
    monkeypatch.setattr(Trees, "rejected", lambda self, *rest: plant(true, self, *rest))
    worst = max(bias(rule, forest) for forest in forests("second child grows", 800, zeros=0.0))
    only_scales = plant is the_scale_stays_as_it_was and isinstance(rule, TreeVerifier)
    assert worst < EXACT if only_scales else worst > SEEN  # top-down every scale is 1


def test_a_dead_end_that_counts_for_nothing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Trees.rejected

    def rejected(self: Trees, left: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found, scale = true(self, left, *rest)
        return found, scale * (left.amax(-1) > 0)

    monkeypatch.setattr(Trees, "rejected", rejected)
    assert max(bias(RULES[1], forest) for forest in forests("lopsided", 820, count=6, dead=0.4)) > SEEN


def test_trying_parents_before_their_children_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that stands before its children are tried hides what they would have told of it."""
    monkeypatch.setattr(
        traversal, "_depth_first", lambda parents: tuple(turn for node in range(len(parents)) for turn in (node, ~node))
    )
    assert max(bias(RULES[1], forest) for forest in forests("two by two", 840, zeros=0.0)) > SEEN
