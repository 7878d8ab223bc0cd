"""The worker thread for asynchronous callers: streams, aborts, refusals and its death."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from paceline import InvalidRequestError, SamplingParams
from paceline.core.errors import EngineDeadError, EngineStalledError
from paceline.core.outputs import StreamUpdate
from paceline.engine.worker import EngineWorker
from tests.support.calls import assert_idle, greedy, make, random_prompt, seeded

ENDLESS = greedy(max_tokens=None, ignore_eos=True)
PROMPT = random_prompt(3, 9)


@pytest.fixture(params=["plain", "near"])
def worker(request, checkpoints) -> Iterator[EngineWorker]:
    worker = EngineWorker(make(checkpoints.llama, checkpoints.near if request.param == "near" else None))
    yield worker
    worker.close()
    assert not worker._thread.is_alive()


def slow(worker: EngineWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a step take long enough to act between two of them."""
    step = worker.llm.engine.step
    monkeypatch.setattr(worker.llm.engine, "step", lambda: time.sleep(0.01) or step())


async def collect(stream: AsyncIterator[StreamUpdate]) -> list[StreamUpdate]:
    return [update async for update in stream]


def run(main: Any) -> Any:
    return asyncio.run(asyncio.wait_for(main, timeout=30))


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def joined(updates: list[StreamUpdate], index: int = 0) -> tuple[str, list[int]]:
    deltas = [delta for update in updates for delta in update.deltas if delta.index == index]
    return "".join(delta.text for delta in deltas), [token for delta in deltas for token in delta.token_ids]


@pytest.mark.parametrize(
    "params",
    [greedy(max_tokens=30), seeded(max_tokens=30, logprobs=2), seeded(n=3, max_tokens=20), seeded(stop=["a", "e"])],
    ids=str,
)
def test_joined_deltas_are_the_answer(params: SamplingParams, worker: EngineWorker, plain) -> None:
    prompts = [PROMPT, random_prompt(4, 30)]
    expected = plain.generate(prompts, params)

    async def main() -> list[list[StreamUpdate]]:
        streams = [worker.generate(prompt, params, request_id=f"r{n}") for n, prompt in enumerate(prompts)]
        return await asyncio.gather(*map(collect, streams))

    for number, (updates, output) in enumerate(zip(run(main()), expected, strict=True)):
        assert {update.request_id for update in updates} == {f"r{number}"}
        assert [update.finished for update in updates] == [False] * (len(updates) - 1) + [True]
        assert updates[-1].metrics.time_to_first_token > 0
        for answer in output.outputs:
            assert joined(updates, answer.index) == (answer.text, answer.token_ids)
            deltas = [delta for update in updates for delta in update.deltas if delta.index == answer.index]
            assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + [answer.finish_reason]
            assert deltas[-1].stop_reason == answer.stop_reason
            if params.logprobs is not None:
                assert [e.token_id for delta in deltas for e in delta.logprobs] == answer.token_ids
    assert_idle(worker.llm.engine)


def test_closing_a_stream_aborts_its_call(worker: EngineWorker, monkeypatch) -> None:
    slow(worker, monkeypatch)

    async def main() -> None:
        leaving, staying = (worker.generate(PROMPT, ENDLESS, request_id=name) for name in ("leaving", "staying"))
        await anext(leaving)
        rest = asyncio.create_task(collect(staying))
        await leaving.aclose()
        await eventually(lambda: worker.stats()["finished"] == {"abort": 1})
        assert len(joined(await rest)[1]) == 128 - len(PROMPT)
        assert worker.stats()["num_requests_running"] == worker.stats()["pages"]["referenced"] == 0

    run(main())
    assert_idle(worker.llm.engine)


def test_aborting_by_id_ends_the_stream(worker: EngineWorker, monkeypatch) -> None:
    slow(worker, monkeypatch)

    async def main() -> list[StreamUpdate]:
        stream = worker.generate(PROMPT, seeded(n=2, max_tokens=None, ignore_eos=True), request_id="mine")
        updates = [await anext(stream)]
        worker.abort("mine")
        return updates + await collect(stream)

    updates = run(main())
    assert [delta.finish_reason for delta in updates[-1].deltas] == ["abort", "abort"]
    assert updates[-1].finished
    assert_idle(worker.llm.engine)


def test_aborting_what_is_unknown_or_over_is_harmless(worker: EngineWorker) -> None:
    async def main() -> None:
        worker.abort("never")
        first = await collect(worker.generate(PROMPT, greedy(), request_id="over"))
        worker.abort("over")
        assert joined(await collect(worker.generate(PROMPT, greedy(), request_id="over"))) == joined(first)

    run(main())
    assert worker.alive


def test_a_task_cancelled_while_it_waits(worker: EngineWorker, monkeypatch) -> None:
    slow(worker, monkeypatch)

    async def main() -> None:
        task = asyncio.create_task(collect(worker.generate(PROMPT, ENDLESS, request_id="mine")))
        await eventually(lambda: worker.stats()["num_requests_running"] == 1)
        task.cancel()
        await eventually(lambda: worker.stats()["pages"]["referenced"] == 0)

    run(main())
    assert worker.alive


def test_an_event_loop_that_ends_with_streams_open(worker: EngineWorker, monkeypatch) -> None:
    """The callers of other loops must not notice."""
    slow(worker, monkeypatch)
    loop = asyncio.new_event_loop()
    stream = worker.generate(PROMPT, seeded(max_tokens=20), request_id="lost")
    loop.run_until_complete(anext(stream))
    loop.close()
    assert joined(run(collect(worker.generate(PROMPT, greedy(), request_id="next"))))[1]
    run(eventually(lambda: worker.stats()["num_requests_running"] == 0))
    assert worker.alive


def test_invalid_calls_are_refused_at_once(worker: EngineWorker) -> None:
    for prompt, params in (([], greedy()), ([10**6], greedy()), ([True], greedy()), ([5] * 128, greedy())):
        with pytest.raises(InvalidRequestError):
            worker.generate(prompt, params, request_id="bad")
    assert worker.stats()["num_requests_waiting"] == 0


def test_an_id_in_use_is_refused_and_its_owner_undisturbed(worker: EngineWorker, plain, monkeypatch) -> None:
    slow(worker, monkeypatch)

    async def main() -> list[StreamUpdate]:
        stream = worker.generate(PROMPT, greedy(), request_id="same")
        updates = [await anext(stream)]
        with pytest.raises(InvalidRequestError) as caught:
            await collect(worker.generate(PROMPT, ENDLESS, request_id="same"))
        assert caught.value.param == "request_id"
        return updates + await collect(stream)

    assert joined(run(main()))[1] == plain.generate(PROMPT, greedy())[0].outputs[0].token_ids


def test_an_engine_that_raises_ends_every_stream(worker: EngineWorker, monkeypatch, caplog) -> None:
    def broken() -> None:
        raise RuntimeError("boom")

    async def main() -> None:
        slow(worker, monkeypatch)
        streams = [worker.generate(PROMPT, ENDLESS, request_id=f"r{n}") for n in range(3)]
        late = worker.generate(PROMPT, ENDLESS, request_id="late")
        await asyncio.gather(*map(anext, streams))
        monkeypatch.setattr(worker.llm.engine, "step", broken)
        for error in await asyncio.gather(*map(collect, streams), return_exceptions=True):
            assert isinstance(error, EngineDeadError)
        with pytest.raises(EngineDeadError):
            await collect(late)

    run(main())
    assert not worker.alive
    assert "boom" in caplog.text
    with pytest.raises(EngineDeadError):
        worker.generate(PROMPT, greedy(), request_id="after")
    worker.abort("r0")
    assert worker.stats()["num_requests_running"] == 0


def test_closing_ends_streams_and_the_thread(worker: EngineWorker, monkeypatch) -> None:
    slow(worker, monkeypatch)

    async def main() -> None:
        running, unread = (worker.generate(PROMPT, ENDLESS, request_id=name) for name in ("running", "unread"))
        await anext(running)
        worker.close()
        worker.close()
        for stream in (running, unread):
            with pytest.raises(EngineDeadError):
                await collect(stream)

    run(main())
    assert not worker.alive
    assert not worker._thread.is_alive()
    assert_idle(worker.llm.engine)


def test_commands_given_while_it_stops_are_answered(worker: EngineWorker) -> None:
    """A call that is in the queue behind the order to stop must not wait forever."""

    async def main() -> None:
        async def ask(number: int) -> list[StreamUpdate]:
            return await collect(worker.generate(PROMPT, ENDLESS, request_id=f"r{number}"))

        tasks = [asyncio.create_task(ask(number)) for number in range(20)]
        await asyncio.sleep(0)
        await asyncio.to_thread(worker.close)
        for error in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(error, EngineDeadError)

    run(main())


def test_a_step_that_takes_too_long_is_a_stall(worker: EngineWorker, monkeypatch) -> None:
    """Idleness is none, and the worker recovers with the step's end."""
    worker.loop.stall_seconds = 0.05
    time.sleep(0.1)
    assert worker.ready
    assert not worker.stalled
    step, stuck = worker.llm.engine.step, threading.Event()
    monkeypatch.setattr(worker.llm.engine, "step", lambda: stuck.wait(20) and step())

    async def main() -> None:
        stream = asyncio.create_task(collect(worker.generate(PROMPT, greedy(), request_id="mine")))
        await eventually(lambda: worker.stalled and not worker.ready and worker.alive)
        with pytest.raises(EngineStalledError):
            await asyncio.to_thread(worker.stats)
        stuck.set()
        await stream
        await eventually(lambda: worker.ready and not worker.stalled)

    run(main())
    assert worker.restarts == 0
