"""One ``LLM`` called by many threads: joined batches, the texts of a call alone, and nobody waits for a dead leader."""

from __future__ import annotations

import asyncio
import ctypes
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from paceline import LLM, InvalidRequestError
from paceline.core.errors import EngineDeadError
from tests.support.calls import assert_idle, greedy, make, random_prompt, seeded, tokens_of

NUM_THREADS = 6
PROMPTS = [random_prompt(seed, 6 + 3 * seed) for seed in range(NUM_THREADS)]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "small, native": {"block_size": 4, "num_blocks": 40, "dtype": "float32", "max_num_seqs": 4},
    "drafts": {"draft": "near"},
}


@pytest.fixture(params=KINDS)
def shared(request, checkpoints) -> LLM:
    options = dict(KINDS[request.param])
    draft = options.pop("draft", None)
    return make(checkpoints.llama, getattr(checkpoints, draft) if draft else None, **options)


def together(calls: list[Callable[[], Any]]) -> list[Any]:
    """What the calls return, each on a thread of its own, begun at the same moment."""
    barrier = threading.Barrier(len(calls))

    def one(call: Callable[[], Any]) -> Any:
        barrier.wait(30)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(120) for future in [pool.submit(one, call) for call in calls]]


def test_threads_get_the_texts_of_calls_alone(shared: LLM) -> None:
    params = [seeded(number, max_tokens=20, n=1 + number % 2) for number in range(NUM_THREADS)]
    expected = [tokens_of(shared.generate(*pair)) for pair in zip(PROMPTS, params, strict=True)]
    for _ in range(4):
        calls = [lambda pair=pair: shared.generate(*pair) for pair in zip(PROMPTS, params, strict=True)]
        assert [tokens_of(found) for found in together(calls)] == expected
    assert_idle(shared.engine)
    assert not shared.engine.scheduler.unfinished


def test_calls_of_threads_share_their_steps(shared: LLM) -> None:
    """A step that two calls took part in shows that they were one batch."""
    num_running: list[int] = []
    step = shared.engine.step

    def watched() -> Any:
        num_running.append(len(shared.engine.scheduler.running))
        time.sleep(0.002)
        return step()

    shared.engine.step = watched  # type: ignore[method-assign]
    params = greedy(max_tokens=30, ignore_eos=True)
    together([lambda prompt=prompt: shared.generate(prompt, params) for prompt in PROMPTS])
    assert max(num_running) > 1


@pytest.mark.parametrize("kind", ["generate", "generate n=2", "chat-like ids", "embed"])
def test_many_prompts_of_one_thread_leave_a_seat_to_another(kind: str, checkpoints) -> None:
    """Who comes with one prompt is served while most of the many still wait, whose texts stay as they are."""
    llm = make(checkpoints.llama, max_num_seqs=2, max_num_batched_tokens=16, max_model_len=100)
    lengths = range(60, 72)
    many = [random_prompt(seed, length) for seed, length in enumerate(lengths)]
    params = greedy(max_tokens=25, ignore_eos=True, n=1 if kind != "generate n=2" else 2, temperature=0.9, seed=1)

    def all_of_them() -> Any:
        if kind == "embed":
            return [[round(number, 9) for number in output.embedding] for output in llm.embed(many)]
        prompts = [{"prompt_token_ids": ids} for ids in many] if kind == "chat-like ids" else many
        return tokens_of(llm.generate(prompts, params))

    expected, alone = all_of_them(), tokens_of(llm.generate(PROMPTS[0], greedy()))
    step, begun, waiting = llm.engine.step, threading.Event(), []

    def watched() -> Any:
        if begun.is_set():
            time.sleep(0.001)
        begun.set()
        return step()

    llm.engine.step = watched  # type: ignore[method-assign]

    def one() -> Any:
        assert begun.wait(30)
        found = tokens_of(llm.generate(PROMPTS[0], greedy()))
        waiting.append(len(llm.engine.scheduler.waiting))
        return found

    assert together([all_of_them, one]) == [expected, alone]
    assert waiting[0] >= 4
    assert_idle(llm.engine)


def test_asyncio_to_thread(shared: LLM) -> None:
    expected = [tokens_of(shared.generate(prompt, greedy())) for prompt in PROMPTS]

    async def main() -> list[Any]:
        return await asyncio.gather(*(asyncio.to_thread(shared.generate, prompt, greedy()) for prompt in PROMPTS))

    assert [tokens_of(found) for found in asyncio.run(main())] == expected


def test_stats_chat_and_embed_beside_generate(shared: LLM) -> None:
    vector = shared.embed(PROMPTS[3])[0].embedding
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    said = tokens_of(shared.chat(chat, greedy()))
    calls: list[Callable[[], Any]] = [
        lambda: tokens_of(shared.generate(PROMPTS, greedy(max_tokens=30))) and None,
        lambda: pytest.approx(shared.embed(PROMPTS[3])[0].embedding) == vector,
        lambda: tokens_of(shared.chat(chat, greedy())) == said,
        lambda: shared.stats()["pages"]["total"] > 0,
    ]
    assert together(calls * 2) == [None, True, True, True] * 2


def test_a_bad_call_of_one_thread_harms_no_other(shared: LLM) -> None:
    expected = tokens_of(shared.generate(PROMPTS[0], greedy()))

    def bad() -> str:
        with pytest.raises(InvalidRequestError):
            shared.generate([10**9], greedy())
        return "refused"

    calls: list[Callable[[], Any]] = [bad, lambda: tokens_of(shared.generate(PROMPTS[0], greedy()))]
    assert together(calls * 3) == ["refused", expected] * 3


class Stop(BaseException):
    """What is raised in a thread from outside."""


def test_a_thread_that_is_interrupted_loses_its_own_call_only(shared: LLM) -> None:
    """Leaders and followers alike, at whatever moment."""
    expected = [tokens_of(shared.generate(prompt, greedy(max_tokens=24))) for prompt in PROMPTS]
    num_stopped = 0
    for round_number in range(8):
        results: dict[int, Any] = {}
        begun, over = threading.Barrier(NUM_THREADS + 1), threading.Event()

        def call(number: int, results: dict[int, Any] = results, begun: Any = begun, over: Any = over) -> None:
            try:
                begun.wait(30)
                results[number] = tokens_of(shared.generate(PROMPTS[number], greedy(max_tokens=24)))
                over.wait(30)
            except Stop:
                results.setdefault(number, "stopped")

        threads = [threading.Thread(target=call, args=(number,)) for number in range(NUM_THREADS)]
        for thread in threads:
            thread.start()
        begun.wait(30)
        time.sleep(0.002 * round_number)
        for thread in threads[::3]:
            ident = thread.ident
            assert ident is not None
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(Stop))
        over.set()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        num_stopped += sum(result == "stopped" for result in results.values())
        for number, found in results.items():
            assert found in ("stopped", expected[number])
        assert set(results) == set(range(NUM_THREADS))
    assert_idle(shared.engine)
    assert [tokens_of(shared.generate(prompt, greedy(max_tokens=24))) for prompt in PROMPTS] == expected
    assert num_stopped


def test_a_call_from_within_a_call_is_refused_and_harms_nothing(shared: LLM) -> None:
    expected = tokens_of(shared.generate(PROMPTS[1], greedy()))
    step, refused = shared.engine.step, []

    def calling() -> Any:
        with pytest.raises(InvalidRequestError, match="from within a call"):
            shared.generate(PROMPTS[0], greedy())
        refused.append(True)
        return step()

    shared.engine.step = calling  # type: ignore[method-assign]
    assert tokens_of(shared.generate(PROMPTS[1], greedy())) == expected
    assert refused


def test_closing_ends_the_calls_that_run(checkpoints) -> None:
    llm = make(checkpoints.llama)
    step, running = llm.engine.step, threading.Event()

    def slow() -> Any:
        running.set()
        time.sleep(0.005)
        return step()

    llm.engine.step = slow  # type: ignore[method-assign]
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(llm.generate, p, greedy(max_tokens=100, ignore_eos=True)) for p in PROMPTS[:3]]
        assert running.wait(30)
        llm.close()
        errors = [call.exception(60) for call in calls]
    assert all(isinstance(error, EngineDeadError) for error in errors), errors
    with pytest.raises(EngineDeadError, match="closed"):
        llm.generate(PROMPTS[0], greedy())
