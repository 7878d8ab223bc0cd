"""Ctrl-C or a lack of memory between any two statements of a call loses no page, and changes no later text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from paceline import LLM
from paceline.core.outputs import RequestOutput
from paceline.core.seats import Seats
from tests.engine.interrupting import Interrupter
from tests.support.calls import assert_idle, greedy, make, random_prompt, seeded

POINTS = 32
"""In each setting, of a run that everybody can wait for."""
MANY_POINTS = 600
LEAVING = ("engine/turns.py", "engine/recovery.py", "engine/llm.py", "engine/results.py")
"""Where an exception cuts short the cleaning up itself, so that the next call does it."""

PROMPTS = [random_prompt(1, 9), random_prompt(2, 17), [*random_prompt(2, 17), 5, 6], random_prompt(4, 12)]
PARAMS = [
    greedy(max_tokens=14, stop=["zq"]),
    seeded(5, max_tokens=12, n=2, repetition_penalty=1.2),
    seeded(4, max_tokens=12, logprobs=1, bad_words=["the"]),
    seeded(6, max_tokens=10, top_p=0.9, n=2, best_of=2, min_tokens=4),
]
SMALL: dict[str, Any] = {"block_size": 4, "num_blocks": 11, "max_num_batched_tokens": 24, "max_num_seqs": 5}
NATIVE: dict[str, Any] = {"model_impl": "native", "dtype": "float32"}
TORCH: dict[str, Any] = {"model_impl": "torch", "dtype": "float64"}
DRAFT = "near"
SETTINGS: dict[str, dict[str, Any]] = {
    "native, drafts": {"draft": DRAFT, "num_scheduler_steps": 1, **NATIVE},
    "native, rounds": {"draft": DRAFT, "num_scheduler_steps": 4, "num_blocks": 200, **NATIVE},
    "native, ahead": {"num_scheduler_steps": 4, **NATIVE},
    "torch, drafts": {"draft": DRAFT, **TORCH},
    "torch, ngram": {"speculative_config": {"method": "ngram", "prompt_lookup_min": 1}, **TORCH},
    "torch, fair, sliding": {"max_model_len": 24, "context_overflow": "slide", "scheduling_policy": "fair", **TORCH},
}
PLAIN = ("native, rounds", "native, ahead")
"""Only calls of tokens alone are several passes or rounds in one go."""


def ask(llm: LLM, setting: str) -> list[RequestOutput]:
    if setting in PLAIN:
        params = [greedy(max_tokens=14), seeded(5, max_tokens=12, n=2), seeded(4, max_tokens=12), greedy(max_tokens=9)]
        return llm.generate(PROMPTS, params)
    return llm.generate(PROMPTS, PARAMS)


def told(outputs: list[RequestOutput]) -> list[list[Any]]:
    return [[(one.token_ids, one.text, one.finish_reason, one.stop_reason) for one in out.outputs] for out in outputs]


def check_outcome(found: list[list[Any]], expected: list[list[Any]], where: str | None) -> None:
    """A lack of memory may fail the call that met it, never change another's text."""
    for one, wanted in zip(found, expected, strict=True):
        broken = any(reason == "error" for _, _, reason, _ in one)
        assert broken or one == wanted, f"a text differs after an exception at {where}"


def interrupt(llm: LLM, setting: str, expected: Any, interrupter: Interrupter) -> bool:
    """Whether the exception came out of the call."""
    outputs: list[RequestOutput] = []
    with suppress(KeyboardInterrupt, MemoryError), interrupter.watching():
        outputs = ask(llm, setting)
    if outputs:
        check_outcome(told(outputs), expected, interrupter.where)
    if interrupter.where is not None and not interrupter.where.startswith(LEAVING):
        check_idle(llm, interrupter.where)
    return not outputs


def check_idle(llm: LLM, where: str | None) -> None:
    try:
        assert_idle(llm.engine)
        assert not llm.engine.scheduler.unfinished
    except AssertionError as error:
        raise AssertionError(f"after an exception at {where}: {error}") from error


def points(llm: LLM, setting: str, expected: Any, count: int, random: np.random.Generator) -> Iterator[Interrupter]:
    """Half of them at any event, a quarter between byte codes; half at any statement, so that rare ones have theirs."""
    seen = {}
    for opcodes in (False, True):
        seen[opcodes] = Interrupter(0, None, opcodes=opcodes)
        with seen[opcodes].watching():
            assert told(ask(llm, setting)) == expected
    statements = sorted(seen[False].statements.items())
    for number in range(count):
        error = (KeyboardInterrupt, MemoryError)[number // 4 % 2]()
        if number % 2:
            statement, times = statements[int(random.integers(len(statements)))]
            yield Interrupter(int(random.integers(1, times + 1)), error, of=statement)
        else:
            opcodes = number % 4 == 2
            yield Interrupter(int(random.integers(1, seen[opcodes].count + 1)), error, opcodes=opcodes)


def inject(llm: LLM, setting: str, count: int, seed: int) -> None:
    random, raised = np.random.default_rng(seed), 0
    expected = told(ask(llm, setting))
    assert llm.engine.scheduler.num_preemptions or setting == "native, rounds"
    for interrupter in points(llm, setting, expected, count, random):
        raised += interrupt(llm, setting, expected, interrupter)
        again = told(ask(llm, setting))
        assert again == expected, f"the next texts differ after {interrupter.error!r} at {interrupter.where}"
        check_idle(llm, interrupter.where)
    assert raised > count // 3


@pytest.fixture
def make_llm(checkpoints) -> Callable[[str], LLM]:
    def build(setting: str) -> LLM:
        options = {**SMALL, **SETTINGS[setting]}
        draft = getattr(checkpoints, options.pop("draft")) if "draft" in options else None
        return make(checkpoints.llama, draft, **options)

    return build


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_exception_anywhere_leaves_books_and_texts_right(setting, make_llm) -> None:
    inject(make_llm(setting), setting, POINTS, seed=1)


def test_planted_bug_is_caught(make_llm, monkeypatch) -> None:
    """Seats that are not made anew."""
    llm = make_llm("native, drafts")
    monkeypatch.setattr(Seats, "clear", lambda _: None)
    with pytest.raises(AssertionError, match="after an exception at"):
        inject(llm, "native, drafts", POINTS, seed=1)


@pytest.mark.full
@pytest.mark.parametrize("setting", SETTINGS)
def test_an_exception_at_many_points_leaves_books_and_texts_right(setting, make_llm) -> None:
    inject(make_llm(setting), setting, MANY_POINTS, seed=2)
