"""What the engine counts: each request's prefix lookup once, and the tokens of its steps."""

from __future__ import annotations

from typing import Any

import pytest

from paceline.core.call import CallOptions
from paceline.engine.engine import Engine
from paceline.engine.report import engine_stats
from paceline.engine.stats import STEP_TOKENS
from tests.support.calls import begin, finish, greedy, random_prompt, seeded
from tests.support.engines import Models

NEAR = {"method": "draft_model", "model": "near", "num_speculative_tokens": 4}


def lookups(engine: Engine) -> tuple[int, int]:
    found = engine_stats(engine)["prefix_cache"]
    return found["queries"], found["hits"]


@pytest.mark.parametrize("speculation", [None, NEAR])
def test_who_comes_back_is_looked_up_once(speculation: Any, models: Models) -> None:
    engine = models.engine(speculation, block_size=4)
    group = begin(engine, random_prompt(1, 31), greedy(max_tokens=20, ignore_eos=True))
    for _ in range(9):
        engine.step()
        if engine.scheduler.running:
            engine.scheduler.preempt(group.members[0])
    finish(engine, [group])
    assert group.members[0].num_preemptions > 3
    assert lookups(engine) == (30, 0)
    again = begin(engine, random_prompt(1, 31), greedy(max_tokens=2))
    finish(engine, [again])
    assert lookups(engine) == (60, 28)


def test_a_context_that_slides_is_looked_up_once(models: Models) -> None:
    engine = models.engine(block_size=4, max_model_len=40)
    params, options = greedy(max_tokens=90, ignore_eos=True), CallOptions(context_overflow="slide")
    group = begin(engine, random_prompt(1, 31), params, options=options)
    finish(engine, [group])
    assert group.members[0].num_slides > 2
    assert lookups(engine) == (30, 0)


def test_who_finds_a_seat_and_no_pages_is_not_looked_up_again(models: Models) -> None:
    engine = models.engine(block_size=4, num_blocks=16)
    groups = [begin(engine, random_prompt(n, 26), greedy(max_tokens=24, ignore_eos=True)) for n in range(4)]
    finish(engine, groups)
    assert engine.scheduler.num_preemptions > 0
    assert lookups(engine)[0] == 4 * 25


def test_answers_that_share_a_prompt_look_it_up_once(models: Models) -> None:
    engine = models.engine(block_size=4)
    group = begin(engine, random_prompt(1, 31), seeded(n=4, max_tokens=6))
    finish(engine, [group])
    assert lookups(engine) == (30, 0)


@pytest.mark.parametrize("speculation", [None, NEAR])
def test_steps_by_their_tokens(speculation: Any, models: Models) -> None:
    engine = models.engine(speculation, block_size=4, max_num_batched_tokens=16, enable_prefix_caching=False)
    groups = [begin(engine, random_prompt(n, 30), greedy(max_tokens=5, ignore_eos=True)) for n in range(2)]
    finish(engine, groups)
    told = engine_stats(engine)["step_tokens"]
    assert told["up_to"] == list(STEP_TOKENS)
    assert sum(told["counts"]) == engine_stats(engine)["num_steps"]
    # The last row of a prompt is no row of a prompt where it comes alone: it is what gives the first token.
    assert 2 * 29 + 2 * 5 <= told["total"] <= 2 * 30 + 2 * 5
    assert told["counts"][STEP_TOKENS.index(16)] >= 3
