"""Over several rounds, with the real noise: what a round drew comes back in no later one and for no other use."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from paceline.kernels import philox
from paceline.kernels.philox import Domain
from paceline.speculation.verify import BlockVerifier, TokenVerifier, TraversalVerifier, TreeVerifier
from paceline.speculation.verify.ratio import RatioVerifier
from paceline.speculation.verify.tree_ratio import TreeRatioVerifier
from tests.speculation import plants
from tests.speculation.joint import DEVIATIONS, distance
from tests.speculation.rounds import texts
from tests.support.seating import Room, make_request, many_rows, random_logits

COUNT = 15_000
LENGTH = 3
DEPTH = 2
Plant = Callable[[pytest.MonkeyPatch], None]
RULES = [TokenVerifier, BlockVerifier, TreeVerifier, TraversalVerifier]

SIDES = {
    "two tokens": ([0.6, 0.4], [0.4, 0.6]),
    "two too rarely": ([0.3, 0.4, 0.3], [0.05, 0.35, 0.6]),
    "one too often": ([0.4, 0.4, 0.2], [0.3, 0.3, 0.4]),
    "never drafted": ([0.4, 0.3, 0.3], [0.0, 0.8, 0.2]),
}


def deviations(rule: type[RatioVerifier | TreeRatioVerifier], name: str) -> float:
    p, q = SIDES[name]
    tokens = texts(rule(), p, q, count=COUNT, depth=DEPTH, length=LENGTH)
    joint = functools.reduce(np.multiply.outer, [np.array(p)] * LENGTH)
    return distance(tokens, joint).deviations


@pytest.mark.parametrize("name", SIDES)
@pytest.mark.parametrize("rule", RULES)
def test_texts_follow_the_target(rule: type[RatioVerifier | TreeRatioVerifier], name: str) -> None:
    assert abs(deviations(rule, name)) < DEVIATIONS


@pytest.mark.parametrize("rule", [TokenVerifier, BlockVerifier])
@pytest.mark.parametrize(
    ("plant", "name"),
    [
        (plants.replacements_reuse_the_noise_of_drafts, "two too rarely"),
        (plants.replacements_reuse_the_noise_of_acceptance, "one too often"),
        (plants.acceptance_reuses_the_noise_of_drafts, "two tokens"),
        (plants.drafts_share_the_noise_of_the_target, "two tokens"),
    ],
)
def test_noise_used_twice_is_caught(
    plant: Plant, name: str, rule: type[RatioVerifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert deviations(rule, name) > DEVIATIONS


@pytest.mark.parametrize("rule", [TreeVerifier, TraversalVerifier])
@pytest.mark.parametrize(
    ("plant", "name"),
    [
        (plants.replacements_reuse_the_noise_of_drafts, "two too rarely"),
        (plants.drafts_share_the_noise_of_the_target, "two tokens"),
    ],
)
def test_noise_used_twice_by_rules_of_trees_is_caught(
    plant: Plant, name: str, rule: type[TreeRatioVerifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their acceptance has the key of the node's own row, not of its parent's: one domain less shows less there."""
    plant(monkeypatch)
    assert deviations(rule, name) > DEVIATIONS


def test_what_a_rejected_draft_drew_may_not_be_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """That block rejected tells of all depths of a draft; that token rejected, only of what it then replaced."""
    plants.a_draft_reuses_the_noise_of_the_one_before(monkeypatch)
    assert deviations(BlockVerifier, "two tokens") > DEVIATIONS
    assert deviations(TokenVerifier, "two tokens") < DEVIATIONS


def drafts_are_drawn_from_what_is_handed_over() -> None:
    room = Room(vocab=50)
    request = room.join(make_request(top_k=20, temperature=0.7))
    rows = many_rows(request, 10_000)
    logits = random_logits(1, vocab=50, dtype=torch.float32).expand(len(rows), -1)
    tokens, probs = room.pipeline.draft(logits, rows)
    noise = room.pipeline.noise(rows, Domain.DRAFT, torch.float32)
    # Not compared as lists: where a planted bug makes them differ, the report of how takes minutes.
    assert torch.equal(torch.as_tensor(tokens), (probs.log() + noise).argmax(-1))
    assert ((probs > 0).sum(-1) == 20).all()


def test_drafts_are_drawn_from_what_is_handed_over() -> None:
    drafts_are_drawn_from_what_is_handed_over()


@pytest.mark.parametrize(
    "plant",
    [
        plants.drafts_are_drawn_from_bfloat16,
        plants.what_is_handed_over_are_the_raw_probabilities,
        plants.drafts_are_the_likeliest_tokens_of_what_is_handed_over,
        plants.drafts_are_drawn_without_truncation,
    ],
)
def test_drafts_from_something_else_are_caught(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding to bfloat16 is too small a bias for samples: the numbers themselves have to be compared."""
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        drafts_are_drawn_from_what_is_handed_over()


def share_below(threshold: float) -> float:
    """With what probability a uniform number is below ``threshold``, exactly: they rise with their word."""
    low, high = 0, 2**32
    while low < high:
        middle = (low + high) // 2
        below = philox._to_unit(torch.tensor([middle], dtype=torch.float64)).item() < threshold
        low, high = (middle + 1, high) if below else (low, middle)
    return low / 2**32


def tails_are_right() -> None:
    for power in range(1, 31):
        for threshold in (2.0**-power, 1.0 - 2.0**-power, 0.7 * 2.0**-power):
            assert abs(share_below(threshold) - threshold) < min(2.0**-31, 0.3 * threshold)
    assert share_below(1.0) == 1
    assert share_below(2.0**-40) == share_below(0.0) == 0


def test_unlikely_tokens_pass_as_often_as_they_should() -> None:
    tails_are_right()


def test_short_uniform_numbers_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 24 bits, what has probability 2**-26 never happens, or what has none does."""
    plants.uniform_numbers_have_24_bits(monkeypatch)
    with pytest.raises(AssertionError):
        tails_are_right()
