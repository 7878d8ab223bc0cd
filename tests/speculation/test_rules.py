"""The ratio rules follow the target exactly, by enumeration; each way to spoil them shows in the enumeration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from paceline.speculation.verify import BlockVerifier, TokenVerifier
from paceline.speculation.verify.chains import Chains
from paceline.speculation.verify.ratio import RatioVerifier
from tests.speculation.exact import Path, World, bias, outcome, random_world, target_joint

RULES = [TokenVerifier(), BlockVerifier()]
EXACT = 1e-12
SEEN = 1e-3
"""Total variation of a bias that counts as caught."""

WORLDS = {
    "plain": [random_world(seed, zeros=0.0) for seed in range(6)],
    "zeros": [random_world(seed, zeros=0.5) for seed in range(10, 20)],
    "deep": [random_world(seed, depth=3) for seed in range(20, 24)],
    "one": [random_world(seed, depth=1) for seed in range(30, 36)],
    "wide": [random_world(seed, vocab=5) for seed in range(40, 43)],
    "dead ends": [random_world(seed, depth=2, dead=0.3) for seed in range(50, 62)],
    "dead ends below": [random_world(seed, depth=3, dead=0.2) for seed in range(70, 74)],
}


def named(rule: RatioVerifier) -> str:
    return type(rule).__name__


@pytest.mark.parametrize("worlds", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize("rule", RULES, ids=named)
def test_what_comes_out_is_the_target(rule: RatioVerifier, worlds: list[World]) -> None:
    for world in worlds:
        found = outcome(rule, world)
        assert abs(found.joint.sum() - 1) < EXACT
        np.testing.assert_allclose(found.joint, target_joint(world), atol=EXACT)
        assert bias(rule, replace(world, certain=True)) < EXACT
        assert bias(rule, world, torch.float32) < 1e-6


@pytest.mark.parametrize("worlds", WORLDS.values(), ids=WORLDS)
def test_block_keeps_at_least_what_token_keeps(worlds: list[World]) -> None:
    for world in worlds:
        assert outcome(RULES[1], world).accepted >= outcome(RULES[0], world).accepted - EXACT


def test_block_keeps_more_where_drafts_are_deep() -> None:
    token, block = (sum(outcome(rule, world).accepted for world in WORLDS["deep"]) for rule in RULES)
    assert block > 1.01 * token


def test_what_is_kept_is_what_theory_says() -> None:
    """Token by token: the products of the overlaps. By block: a draft token stands with probability rho."""
    for world in WORLDS["plain"] + WORLDS["zeros"]:
        kept = outcome(RULES[0], world).stands
        overlap = sum(kept.get((token,), 0.0) for token in range(world.vocab))
        assert overlap == pytest.approx(np.minimum(world.p[()], world.q[()]).sum(), abs=EXACT)
        for path, mass in outcome(RULES[1], world).stands.items():
            rho = 1.0
            for depth, token in enumerate(path):
                rho = min(1.0, rho * world.p[path[:depth]][token] / world.q[path[:depth]][token])
            assert mass == pytest.approx(rho * world.mass(path), abs=EXACT)


def stops_behind_what_is_unlikely(path: Path, world: World) -> int:
    """Keeps the first token that its draft finds unlikely, and stops."""
    for depth, token in enumerate(path):
        if world.q[path[:depth]][token] < 0.4:
            return depth + 1
    return world.depth


def stops_before_what_is_unlikely(path: Path, world: World) -> int:
    """Drops the token for what it turned out to be: it anticipates."""
    return stops_behind_what_is_unlikely(path, world) - any(
        world.q[path[:depth]][token] < 0.4 for depth, token in enumerate(path)
    )


@pytest.mark.parametrize("rule", RULES, ids=named)
def test_where_a_draft_may_stop(rule: RatioVerifier) -> None:
    worlds = WORLDS["plain"] + WORLDS["deep"]
    for world in worlds:
        behind = replace(world, stop=stops_behind_what_is_unlikely)
        assert bias(rule, behind) < EXACT
        assert bias(rule, replace(behind, stop=lambda path, _: sum(path) % 3, certain=True)) < EXACT
    assert max(bias(rule, replace(world, stop=stops_before_what_is_unlikely)) for world in worlds) > 0.05


def test_claiming_certainty_for_a_drawn_token_only_costs_acceptance() -> None:
    for world in WORLDS["plain"]:
        assert outcome(RULES[0], replace(world, certain=True)).accepted < outcome(RULES[0], world).accepted


# What drafters got wrong elsewhere: the tokens were not drawn from what was handed over.


def top_k(row: np.ndarray) -> np.ndarray:
    kept = np.where(row >= np.sort(row)[-2], row, 0.0)
    return kept / kept.sum()


def best(row: np.ndarray) -> np.ndarray:
    return np.eye(len(row))[row.argmax()]


def bfloat16(row: np.ndarray) -> np.ndarray:
    rounded = torch.from_numpy(row).bfloat16().double().numpy()
    return rounded / rounded.sum()


@pytest.mark.parametrize("rule", RULES, ids=named)
@pytest.mark.parametrize(
    ("drawn_from", "seen"), [(top_k, SEEN), (best, SEEN), (bfloat16, 1e-5)], ids=["top_k", "best", "bfloat16"]
)
def test_a_draft_that_was_not_drawn_from_what_it_says_is_caught(
    drawn_from: Callable[[np.ndarray], np.ndarray], seen: float, rule: RatioVerifier
) -> None:
    worlds = WORLDS["plain"]
    spoilt = [
        replace(world, claimed=world.q, q={path: drawn_from(row) for path, row in world.q.items()}) for world in worlds
    ]
    assert max(bias(rule, world) for world in spoilt) > seen
    honest = [replace(world, claimed=world.q) for world in spoilt]
    assert max(bias(rule, world) for world in honest) < EXACT


# What rules got wrong elsewhere.


def rejected_tokens_are_replaced_from_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Chains.behind
    monkeypatch.setattr(Chains, "behind", lambda *args: (true(*args)[0], torch.ones_like(args[1], dtype=torch.bool)))


def what_was_drafted_is_not_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Chains.behind
    monkeypatch.setattr(
        Chains, "behind", lambda self, *args: true(replace(self, q=torch.zeros_like(self.p[:, 1:])), *args)
    )


def the_residual_is_of_the_next_row(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Chains.behind
    monkeypatch.setattr(Chains, "behind", lambda self, *args: true(replace(self, p=self.p.roll(-1, 1)), *args))


def drafts_are_judged_by_the_row_behind_them(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Chains.ratios
    monkeypatch.setattr(Chains, "ratios", lambda self: true(replace(self, p=self.p.roll(-1, 1))))


def all_likely_tokens_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in typical acceptance: a threshold on p instead of a ratio."""
    true = Chains.ratios

    def ratios(self: Chains) -> torch.Tensor:
        p = self.p[:, :-1].gather(-1, self.tokens.unsqueeze(-1)).squeeze(-1)
        return torch.where((p > 0.3) & (true(self) > 0), 1.0, true(self))

    monkeypatch.setattr(Chains, "ratios", ratios)


SPOILT = [
    rejected_tokens_are_replaced_from_the_target,
    what_was_drafted_is_not_taken_off,
    the_residual_is_of_the_next_row,
    drafts_are_judged_by_the_row_behind_them,
    all_likely_tokens_pass,
]


@pytest.mark.parametrize("plant", SPOILT)
@pytest.mark.parametrize("rule", RULES, ids=named)
def test_a_spoilt_rule_is_caught(
    rule: RatioVerifier, plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert max(bias(rule, world) for world in WORLDS["plain"]) > SEEN


class StopsEarly(BlockVerifier):
    accepted = TokenVerifier.accepted


class TakesTheFirst(BlockVerifier):
    def accepted(self, passed: torch.Tensor) -> torch.Tensor:
        return torch.where(passed.any(-1), passed.long().argmax(-1) + 1, 0)


class PassesByRho(BlockVerifier):
    def thresholds(self, chains: Chains) -> tuple[torch.Tensor, torch.Tensor]:
        _, scales = super().thresholds(chains)
        return scales[:, 1:], scales


class ForgetsRhoBehind(BlockVerifier):
    def thresholds(self, chains: Chains) -> tuple[torch.Tensor, torch.Tensor]:
        thresholds, scales = super().thresholds(chains)
        return thresholds, torch.ones_like(scales)


class LetsRhoGrow(BlockVerifier):
    def thresholds(self, chains: Chains) -> tuple[torch.Tensor, torch.Tensor]:
        reached = chains.ratios().cumprod(-1)
        excess = chains.excess(reached)
        scales = torch.cat([torch.ones_like(reached[:, :1]), reached], dim=1)
        return (excess / (excess + 1.0 - reached)).clamp(0.0, 1.0), scales


class ScansTokens(TokenVerifier):
    accepted = BlockVerifier.accepted


@pytest.mark.parametrize(
    "rule", [StopsEarly(), TakesTheFirst(), PassesByRho(), ForgetsRhoBehind(), LetsRhoGrow(), ScansTokens()], ids=named
)
def test_half_a_block_rule_is_caught(rule: RatioVerifier) -> None:
    assert max(bias(rule, world) for world in WORLDS["plain"]) > SEEN


def test_a_dead_end_that_counts_for_nothing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Chains.excess
    alive = lambda self: self.p[:, 1:].amax(-1) > 0  # noqa: E731
    monkeypatch.setattr(Chains, "excess", lambda self, scale: true(self, scale) * alive(self))
    assert max(bias(RULES[1], world) for world in WORLDS["dead ends"]) > SEEN
