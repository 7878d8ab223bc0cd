"""Through the real engine: the joint distribution of the first tokens is the target's, whatever controls and draft.

What broke elsewhere is planted, in ``plants``. Not planted, since nothing here could have it: a tree's node sampled
once per candidate row (ratio rules take chains), a drafter's cached K/V that hangs on the next token (a draft model's
hangs on the tokens before), recurrent or rotating caches (there are none). Elsewhere: in ``test_rounds`` noise used
twice, rounding to bfloat16, short uniform numbers; in ``test_rules`` the rules' arithmetic; in ``test_verifiers`` ties,
tokens beyond the vocabulary, prompt lookup past the end; in ``test_invariance`` a drafter's trimming and its K/V behind
a whole draft; in ``tests/invariance/test_controls.py`` positions, pages and forks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.speculation import plants
from tests.speculation.joint import DEVIATIONS, Controls, Oracle, deviations, expected_deviations, sampled
from tests.support.engines import Models

PENALTIES = {"presence_penalty": 0.9, "frequency_penalty": 0.6, "repetition_penalty": 1.3}
GRID: list[Controls] = [
    {"temperature": temperature, **top_k, **top_p, **penalties}
    for temperature, top_k, top_p, penalties in itertools.product(
        (0.7, 1.4), ({}, {"top_k": 4}), ({}, {"top_p": 0.8}), ({}, PENALTIES)
    )
]
FEW: list[Controls] = [
    {"temperature": 1.4},
    {"temperature": 0.8, "top_k": 4, "top_p": 0.8},
    {"temperature": 0.7, **PENALTIES},
    {"temperature": 1.0, "top_k": 4, "logit_bias": {2: 0.7}, "min_p": 0.02, **PENALTIES},
]
COUNT = 250
"""Requests per setting: ``test_the_statistic_has_power`` says what they show."""


def run(models: Models, verifier: str, draft: str, settings: list[Controls], count: int, **options: Any) -> np.ndarray:
    speculation = {"method": "draft_model", "model": draft, "num_speculative_tokens": 3, "verifier": verifier}
    engine = models.engine(speculation, max_num_seqs=512, max_num_batched_tokens=8192, **options)
    return sampled(engine, settings, count)


@pytest.mark.parametrize("draft", ["near", "reversed"])
@pytest.mark.parametrize("verifier", ["match", "token", "block"])
def test_texts_follow_the_target(verifier: str, draft: str, narrow: Models, oracle: Oracle) -> None:
    joints = [oracle.joint(controls) for controls in GRID]
    assert deviations(run(narrow, verifier, draft, GRID, COUNT), joints) < DEVIATIONS


def test_the_statistic_has_power(oracle: Oracle) -> None:
    """A temperature off by 15 % moves the first token by 0.05 (total variation); 999 times of 1000 it would be seen."""
    right = [oracle.joint(controls) for controls in GRID]
    wrong = [oracle.joint({**controls, "temperature": 0.85 * controls["temperature"]}) for controls in GRID]
    moved = [
        abs(mine.sum(axis=(1, 2, 3)) - joint.sum(axis=(1, 2, 3))).sum() / 2
        for mine, joint in zip(wrong, right, strict=True)
    ]
    assert np.mean(moved) < 0.06
    assert expected_deviations(wrong, right, COUNT) > DEVIATIONS + 3
    assert expected_deviations(right, right, COUNT) < 1


@pytest.mark.parametrize(
    "plant",
    [
        plants.what_is_handed_over_are_the_raw_probabilities,
        plants.drafts_are_the_likeliest_tokens_of_what_is_handed_over,
        plants.drafts_are_drawn_without_truncation,
        plants.unlikely_drafts_are_dropped,
        plants.penalties_are_blind_to_drafts,
        plants.penalties_see_the_last_drafted_token_only,
        plants.drafting_leaves_its_tokens_in_the_penalties,
        plants.requests_are_weighed_with_their_neighbours_drafts,
        plants.requests_get_their_neighbours_tokens,
        plants.rows_are_counted_as_if_drafts_were_equally_long,
        plants.seeds_are_ignored,
        plants.rejected_tokens_stay_in_the_targets_cache,
    ],
)
def test_planted_bug_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], narrow: Models, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of these is in a rule, so one rule shows them all."""
    joints = [oracle.joint(controls) for controls in FEW]
    plant(monkeypatch)
    assert deviations(run(narrow, "block", "near", FEW, COUNT), joints) > DEVIATIONS


def test_the_few_settings_are_right_without_a_bug(narrow: Models, oracle: Oracle) -> None:
    joints = [oracle.joint(controls) for controls in FEW]
    assert deviations(run(narrow, "block", "near", FEW, COUNT), joints) < DEVIATIONS
