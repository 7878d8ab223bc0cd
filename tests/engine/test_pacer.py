"""The estimated speed-up: what it is compared with, and when there is none."""

from __future__ import annotations

import numpy as np
import pytest

from paceline import SamplingParams
from paceline.core.request import Group, Request
from paceline.core.step import StepPlan
from paceline.engine.pacer import FEWEST, StepPacer, estimated_speedup
from tests.support.calls import greedy, make, random_prompt

PROMPT = random_prompt(3, 12)


def member() -> Request:
    group = Group("g", [1], SamplingParams())
    return Request("r", group, 0, 0, frozenset(), 8)


def step(times: StepPacer, requests: list[Request], kept: list[int], seconds: float, *, drafted=0, known=1) -> None:
    zeros = np.zeros(len(requests), dtype=np.int32)
    plan = StepPlan(requests, zeros, zeros, np.full(len(requests), known, dtype=np.int32), zeros)
    for request in requests:
        request.num_drafted += drafted
    times.record(plan, list(zip(requests, kept, strict=True)), seconds, drafted=drafted > 0)


def test_a_step_of_several_tokens_stands_for_as_many_plain_ones():
    times, other, mine = StepPacer(None), member(), member()
    for seconds in [0.1] * FEWEST + [9.0]:  # one step that something else held up does not count
        step(times, [other], [1], seconds)
    assert estimated_speedup([other]) is None  # it had no drafts
    step(times, [mine], [3], 0.2, drafted=4)
    assert estimated_speedup([mine]) == pytest.approx(1.5)
    step(times, [mine], [1], 0.2, drafted=4)
    step(times, [mine], [1], 0.1)  # no draft was made here: the same either way
    assert estimated_speedup([mine]) == pytest.approx(0.5 / 0.5)
    assert estimated_speedup([mine, other]) == pytest.approx(1.0)


def test_what_was_not_measured_is_not_estimated():
    times, first, second = StepPacer(None), member(), member()
    for _ in range(FEWEST - 1):
        step(times, [first], [1], 0.1)
    step(times, [second], [3], 0.2, drafted=4)
    assert estimated_speedup([second]) is None
    step(times, [first], [1], 0.1)
    beside, alone = member(), member()
    step(times, [beside, member()], [3, 3], 0.2, drafted=4)  # never plain with two requests
    step(times, [alone], [3], 0.2, drafted=4)
    assert estimated_speedup([beside]) is None
    assert estimated_speedup([alone]) == pytest.approx(1.5)


def test_prompts_are_left_out():
    times, mine = StepPacer(None), member()
    for _ in range(FEWEST):
        step(times, [mine], [1], 0.1)
    step(times, [mine], [2], 50.0, drafted=2, known=9)
    step(times, [mine], [2], 0.1, drafted=2)
    plain = 0.1 * FEWEST
    assert estimated_speedup([mine]) == pytest.approx((plain + 0.2) / (plain + 0.1))


def test_the_engine_measures_itself(checkpoints):
    llm = make(checkpoints.llama, checkpoints.near)
    (before,) = llm.generate(PROMPT, greedy(max_tokens=20, ignore_eos=True))
    (plain,) = llm.generate(PROMPT, greedy(max_tokens=20, ignore_eos=True), speculate=False)
    (after,) = llm.generate(PROMPT, greedy(max_tokens=20, ignore_eos=True))
    assert before.metrics.estimated_speedup is plain.metrics.estimated_speedup is None
    assert before.metrics.num_drafted == after.metrics.num_drafted > 0
    assert 0 < after.metrics.estimated_speedup < 20
