"""Memory follows what runs, not what has run: after any number of requests there are as many objects as after a few."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from paceline import LLM
from paceline.core.request import Group
from paceline.engine.input_processor import InputProcessor
from tests.support.calls import greedy, make, random_prompt

ROUNDS = 20


def serve(llm: LLM, rounds: range) -> None:
    """Eight requests a round, of prompts that nobody sent before."""
    for number in rounds:
        prompts = [random_prompt(8 * number + place, 3 + place) for place in range(8)]
        llm.generate(prompts, greedy(max_tokens=3, ignore_eos=True), client=[f"{number}-{place}" for place in range(8)])


def growth(llm: LLM) -> float:
    """Objects that stay of each request."""
    serve(llm, range(ROUNDS))
    gc.collect()
    before = len(gc.get_objects())
    serve(llm, range(ROUNDS, 2 * ROUNDS))
    gc.collect()
    return (len(gc.get_objects()) - before) / (8 * ROUNDS)


@pytest.mark.parametrize("policy", ["fcfs", "fair"])
@pytest.mark.parametrize("draft", [None, "near"])
def test_nothing_stays_of_a_request(draft, policy, checkpoints):
    path = getattr(checkpoints, draft) if draft else None
    options: dict[str, Any] = {"enable_prefix_caching": False, "scheduling_policy": policy}
    assert growth(make(checkpoints.llama, path, **options)) < 0.5


def test_a_call_that_is_kept_would_be_seen(checkpoints, monkeypatch):
    kept: list[Group] = []
    group = InputProcessor.group
    monkeypatch.setattr(InputProcessor, "group", lambda *args, **named: kept.append(group(*args, **named)) or kept[-1])
    assert growth(make(checkpoints.llama, enable_prefix_caching=False)) > 1
