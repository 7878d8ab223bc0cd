"""What a drafter hands over is checked, and a draft is shortened only where that cannot depend on the token's luck."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from paceline.core.params import SamplingParams
from paceline.core.step import DraftTrees
from tests.speculation.joint import DEVIATIONS, PROMPT, VOCAB, Oracle, deviations, sampled
from tests.support.engines import Job, Models, run

Fault = Callable[[DraftTrees], Any]


def engine_with(models: Models, fault: Fault, **options: Any) -> Any:
    speculation = {"method": "draft_model", "model": "near", "num_speculative_tokens": 3, "verifier": "block"}
    engine = models.engine(speculation, **options)
    good = engine.proposer._proposed
    engine.proposer._proposed = lambda plan: fault(good(plan))
    return engine


def changed(drafts: DraftTrees, change: Callable[[torch.Tensor], Any]) -> DraftTrees:
    return drafts if drafts.probs is None else replace(drafts, probs=change(drafts.probs))


def with_row(drafts: DraftTrees, depth: int, value: float) -> DraftTrees:
    def change(probs: torch.Tensor) -> torch.Tensor:
        probs = probs.clone()
        probs[:, depth:] = value
        return probs

    return changed(drafts, change)


FAULTS: dict[str, Fault] = {
    "half a vocabulary": lambda d: changed(d, lambda probs: probs[..., :4]),
    "a request too few": lambda d: changed(d, lambda probs: probs[:-1]),
    "a depth too many": lambda d: changed(d, lambda probs: torch.cat([probs, probs], dim=1)),
    "float64": lambda d: changed(d, torch.Tensor.double),
    "an array": lambda d: changed(d, lambda probs: probs.numpy()),
    "logarithms": lambda d: changed(d, torch.Tensor.log),
    "weights": lambda d: changed(d, lambda probs: probs * 3.0),
    "NaN": lambda d: changed(d, lambda probs: probs * torch.nan),
    "infinity": lambda d: changed(d, lambda probs: probs / 0.0),
    "a negative one": lambda d: changed(d, lambda probs: probs - 0.2 / VOCAB + 0.2 * (torch.arange(VOCAB) == 0)),
    "others' tokens": lambda d: changed(d, lambda probs: (torch.arange(VOCAB) == 0).float().expand(probs.shape)),
    "a tree": lambda d: replace(d, parents=np.full_like(d.parents, -1)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_rubbish_costs_speed_only(name: str, narrow: Models) -> None:
    jobs = [Job(PROMPT, SamplingParams(temperature=1.0, seed=seed, max_tokens=9, ignore_eos=True)) for seed in range(4)]
    engine = engine_with(narrow, FAULTS[name])
    assert [len(tokens) for (tokens,) in run(engine, jobs)] == [9] * 4
    counters = engine.proposer.counters
    assert counters.num_failures + counters.num_rejected_drafts > 0


def test_a_draft_keeps_what_lies_before_a_row_that_is_no_distribution(narrow: Models) -> None:
    jobs = [Job(PROMPT, SamplingParams(temperature=1.0, seed=seed, max_tokens=4, ignore_eos=True)) for seed in range(9)]
    engine = engine_with(narrow, lambda d: with_row(d, 2, float("nan")), max_num_seqs=16)
    run(engine, jobs)
    reached = engine.counters.accepted_per_position
    assert reached[1] > 0
    assert reached[2] == 0
    assert engine.proposer.counters.num_rejected_drafts > 0


def breaks_after_token_five(drafts: DraftTrees) -> DraftTrees:
    """A drafter that breaks down behind one of its tokens, as half precision may."""
    if drafts.probs is None or not drafts.width:
        return drafts
    behind = torch.from_numpy((drafts.tokens == 5).cumsum(axis=1) > 0)[:, :-1]
    probs = drafts.probs.clone()
    probs[:, 1:][behind] = torch.nan
    return replace(drafts, probs=probs)


SETTINGS = [{"temperature": 1.4}, {"temperature": 0.9, "top_k": 5}]


def test_a_drafter_that_breaks_down_behind_some_tokens_biases_nothing(
    narrow: Models, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropping the whole draft instead would make the token that leads to the breakdown rarer."""
    joints = [oracle.joint(controls) for controls in SETTINGS]
    options = {"max_num_seqs": 512, "max_num_batched_tokens": 8192}
    found = sampled(engine_with(narrow, breaks_after_token_five, **options), SETTINGS, 600)
    assert deviations(found, joints) < DEVIATIONS

    def whole(drafts: DraftTrees, probs: torch.Tensor) -> np.ndarray:
        sound = (probs.sum(-1) - 1).abs() < 1e-3
        padding = torch.arange(drafts.width) >= torch.from_numpy(drafts.counts)[:, None]
        return np.where((sound | padding).all(-1).numpy(), drafts.counts, 0).astype(np.int32)

    monkeypatch.setattr("paceline.speculation.guard.drawn", whole)
    found = sampled(engine_with(narrow, breaks_after_token_five, **options), SETTINGS, 600)
    assert deviations(found, joints) > DEVIATIONS
