"""An ``LLM`` that nobody needs gives back its memory at once: nothing of it waits for the garbage collector."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from paceline import LLM
from paceline.core.errors import EngineDeadError
from paceline.engine.compute import StepComputation
from tests.engine.interrupting import Interrupter, statement_of
from tests.support.calls import greedy, make, random_prompt, seeded

METHODS: dict[str, Any] = {
    "none": None,
    "ngram": {"method": "ngram", "prompt_lookup_min": 1},
    "draft_model": {"method": "draft_model", "model": "near", "num_speculative_tokens": 3},
}
IMPLS: dict[str, dict[str, Any]] = {
    "native": {"model_impl": "native", "dtype": "float32"},
    "several passes at once": {"model_impl": "native", "dtype": "float32", "num_scheduler_steps": 4},
    "torch": {"model_impl": "torch", "dtype": "float64"},
}


@pytest.fixture(autouse=True)
def without_garbage_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def parts_of(llm: LLM) -> dict[str, weakref.ref[Any]]:
    """What holds memory, or holds on to what does."""
    engine = llm.engine
    found: dict[str, Any] = {"engine": engine, "model": engine.runner.model, "executor": engine.runner.executor}
    found |= {f"{group.name} K/V": group.store.pools(0)[0] for group in engine.cache.groups}
    found |= {"prefixes": engine.cache.prefix, "controls": engine.pipeline.state, "tokenizer": llm.tokenizer}
    if engine.proposer is not None:
        found["drafter"] = engine.proposer.inner
        if engine.proposer.model is not None:
            found["draft"] = engine.proposer.model
    return {name: weakref.ref(part) for name, part in found.items()}


def use(llm: LLM) -> None:
    llm.generate([random_prompt(1, 12), "hello there"], [greedy(max_tokens=40), seeded(n=2, logprobs=1)])
    llm.generate([random_prompt(2, 5)] * 5, greedy(max_tokens=20, stop=["zq"]))
    llm.embed("hello")
    llm.stats()


def by_del(build: Callable[[], LLM]) -> dict[str, weakref.ref[Any]]:
    llm = build()
    use(llm)
    parts = parts_of(llm)
    del llm
    return parts


def by_with(build: Callable[[], LLM]) -> dict[str, weakref.ref[Any]]:
    with build() as llm:
        use(llm)
        parts = parts_of(llm)
    assert_closed(llm)
    return parts


def by_close(build: Callable[[], LLM]) -> dict[str, weakref.ref[Any]]:
    llm = build()
    use(llm)
    parts = parts_of(llm)
    llm.close()
    llm.close()
    assert_closed(llm)
    return parts


def assert_closed(llm: LLM) -> None:
    calls = (lambda: llm.generate("a", greedy()), lambda: llm.embed("a"), llm.stats, lambda: llm.facts)
    for call in calls:
        with pytest.raises(EngineDeadError, match="closed"):
            call()


@pytest.mark.parametrize("way", [by_del, by_with, by_close], ids=lambda way: way.__name__)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("method", METHODS)
def test_memory_is_given_back_at_once(method, impl, way, checkpoints) -> None:
    speculation = METHODS[method]
    if speculation and "model" in speculation:
        speculation = {**speculation, "model": str(getattr(checkpoints, speculation["model"]))}
    parts = way(lambda: make(checkpoints.llama, speculative_config=speculation, **IMPLS[impl]))
    assert [name for name, part in parts.items() if part() is not None] == []


def test_an_interrupted_llm_is_freed_too(checkpoints) -> None:
    llm = make(checkpoints.llama)
    interrupter = Interrupter(3, KeyboardInterrupt(), of=statement_of(StepComputation.run))
    with pytest.raises(KeyboardInterrupt), interrupter.watching():
        llm.generate("hello", greedy())
    interrupter.error = None  # its traceback knows the interrupter
    use(llm)
    parts = parts_of(llm)
    llm.close()
    assert [name for name, part in parts.items() if part() is not None] == []
