"""The engine in a real child process: the same tokens, every fault told at once, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paceline import InvalidRequestError, PacelineError, SamplingParams
from paceline.core.call import CallOptions
from paceline.core.errors import EngineDeadError, EngineStalledError
from paceline.core.outputs import StreamUpdate
from paceline.engine.process import launch
from paceline.engine.process.client import EngineProcess
from paceline.engine.process.restarts import RestartPolicy
from paceline.engine.warm_up import warm_up
from tests.engine import faulty_child as faults
from tests.support.calls import greedy, make, random_prompt, seeded, tokens_of
from tests.support.waiting import gone, wait_for

ROOT = Path(__file__).resolve().parents[2]
ENDLESS = greedy(max_tokens=None, ignore_eos=True)
PROMPT = random_prompt(3, 9)
OPTIONS: dict[str, Any] = {"dtype": "float64", "max_num_seqs": 8, "device": "cpu", "max_num_batched_tokens": 32}


@pytest.fixture(scope="module")
def client(checkpoints) -> Iterator[EngineProcess]:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    before = launch.CHILD_MODULE
    launch.CHILD_MODULE = "tests.engine.faulty_child"
    draft = {"method": "draft_model", "model": str(checkpoints.near), "num_speculative_tokens": 4}
    policy = RestartPolicy(max_restarts=100, first_delay=0.01, longest_delay=0.01)
    client = EngineProcess(checkpoints.llama, speculative_config=draft, restart_policy=policy, **OPTIONS)
    try:
        yield client
    finally:
        client.close()
        launch.CHILD_MODULE = before
        assert gone(client.pid)


@pytest.fixture(autouse=True)
def nothing_held(request) -> Iterator[None]:
    """After every test the child is up, idle, and holds no page."""
    yield
    if "client" in request.fixturenames:
        client = request.getfixturevalue("client")
        wait_for(lambda: client.ready)
        wait_for(lambda: idle(client.stats()))
        assert not client._streams


def idle(stats: dict[str, Any]) -> bool:
    pages = stats["pages"]
    assert pages["free"] + pages["cached"] + pages["referenced"] == pages["total"]
    return pages["referenced"] == stats["num_requests_running"] == stats["num_requests_waiting"] == 0


async def collect(stream: AsyncIterator[StreamUpdate]) -> list[StreamUpdate]:
    return [update async for update in stream]


def run(main: Any) -> Any:
    return asyncio.run(asyncio.wait_for(main, timeout=60))


def joined(updates: list[StreamUpdate], index: int = 0) -> tuple[str, list[int]]:
    deltas = [delta for update in updates for delta in update.deltas if delta.index == index]
    return "".join(delta.text for delta in deltas), [token for delta in deltas for token in delta.token_ids]


def begin(client: EngineProcess, first: tuple[int, ...] = (), *, params: SamplingParams = ENDLESS, name: str = "mine"):
    return client.generate([*first, *PROMPT], params, request_id=name)


def some_params(number: int) -> SamplingParams:
    kinds = [
        greedy(max_tokens=12),
        seeded(number, max_tokens=10, logprobs=2),
        seeded(number, n=2, max_tokens=6),
        seeded(number, stop=["a", "e"], max_tokens=14),
        seeded(number, repetition_penalty=1.2, logit_bias={9: 2.0}, top_p=0.9, max_tokens=8),
    ]
    return kinds[number % len(kinds)]


def test_fifty_streams_at_once_are_what_the_llm_generates(client, checkpoints):
    prompts = [random_prompt(number, 5 + number % 20) for number in range(50)]
    params = [some_params(number) for number in range(50)]
    expected = make(checkpoints.llama).generate(prompts, params)

    async def main() -> list[list[StreamUpdate]]:
        streams = [
            client.generate(prompt, wanted, request_id=f"r{number}")
            for number, (prompt, wanted) in enumerate(zip(prompts, params, strict=True))
        ]
        return await asyncio.gather(*map(collect, streams))

    for updates, output in zip(run(main()), expected, strict=True):
        assert [update.finished for update in updates] == [False] * (len(updates) - 1) + [True]
        for answer in output.outputs:
            assert joined(updates, answer.index) == (answer.text, answer.token_ids)
            last = [delta for update in updates for delta in update.deltas if delta.index == answer.index][-1]
            assert (last.finish_reason, last.stop_reason) == (answer.finish_reason, answer.stop_reason)
            entries = [e for u in updates for d in u.deltas if d.index == answer.index for e in d.logprobs or []]
            assert [e.token_id for e in entries] == ([e.token_id for e in answer.logprobs] if answer.logprobs else [])


@pytest.mark.parametrize("draft", [None, "near"])
def test_an_engine_that_was_warmed_up_is_as_new(draft, checkpoints):
    """Also for calls without a seed, which draw one from the number of calls before."""
    path = getattr(checkpoints, draft) if draft else None
    fresh, warm = (make(checkpoints.llama, path, seed=5) for _ in range(2))
    warm_up(warm)
    assert warm.stats() == fresh.stats()
    params = SamplingParams(max_tokens=8)
    expected, outputs = (llm.generate([PROMPT, PROMPT], params) for llm in (fresh, warm))
    assert tokens_of(outputs) == tokens_of(expected)
    assert warm.stats() == fresh.stats()


def test_an_engine_too_small_to_warm_up_is_left_cold(checkpoints):
    llm = make(checkpoints.llama, max_model_len=2)
    warm_up(llm)
    assert llm.stats()["pages"]["referenced"] == 0


def test_invalid_calls_are_refused_before_their_first_update(client):
    async def main() -> None:
        for prompt, params, param, code in (
            ([], greedy(), "prompt", None),
            ([5] * 128, greedy(), "prompt", "context_length_exceeded"),
            (PROMPT, greedy(allowed_token_ids=[10**6]), "allowed_token_ids", None),
            (PROMPT, greedy(max_tokens=None, min_tokens=1000), "min_tokens", None),
        ):
            with pytest.raises(InvalidRequestError) as refused:
                await anext(client.generate(prompt, params, request_id="bad"))
            assert (refused.value.param, refused.value.code) == (param, code)
            with pytest.raises(InvalidRequestError, match=str(refused.value).split("\n")[0][:20]):
                await anext(client.generate(prompt, params, request_id="bad"))
        first = begin(client, faults.SLOW)
        await anext(first)
        with pytest.raises(InvalidRequestError) as refused:
            await anext(begin(client))
        assert refused.value.param == "request_id"
        await first.aclose()

    run(main())
    assert client.restarts == 0


@pytest.mark.parametrize("how", ["close", "abort", "cancel"])
@pytest.mark.parametrize("stage", ["queued", "prompt", "decode"])
def test_an_abort_at_any_stage_gives_back_everything(stage, how, client):
    """The budget is 32 tokens a step, so a prompt of 110 takes several; seats are 8."""

    async def main() -> None:
        others = [
            asyncio.create_task(collect(begin(client, faults.SLOW, params=greedy(max_tokens=40), name=f"o{number}")))
            for number in range(8 if stage == "queued" else 1)
        ]
        wanted = {"queued": "num_requests_waiting", "prompt": "num_requests_running", "decode": "num_requests_running"}
        await reached(client, "num_requests_running", len(others))
        prompt = PROMPT if stage == "decode" else random_prompt(7, 110)
        stream = client.generate([*faults.SLOW, *prompt], ENDLESS, request_id="mine")
        task = asyncio.ensure_future(anext(stream))
        if stage == "decode":
            await task
        else:
            await reached(client, wanted[stage], 1 if stage == "queued" else 2)
        await leave(client, stream, task, how)
        expected = joined(await others[0])
        assert all([joined(await other) == expected for other in others])

    run(main())


async def reached(client: EngineProcess, name: str, count: int) -> None:
    while (await asyncio.to_thread(client.stats))[name] < count:
        await asyncio.sleep(0.002)


async def leave(client: EngineProcess, stream: Any, task: Any, how: str) -> None:
    if how == "abort":
        client.abort("mine")
        updates = [] if task.done() else [await task]
        updates += await collect(stream)
        assert updates[-1].deltas[-1].finish_reason == "abort"
        return
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await stream.aclose()


@pytest.mark.parametrize("stage", ["prompt", "decode"])
def test_a_killed_child_is_told_at_once_and_replaced(stage, client):
    restarts, before = client.restarts, client.pid

    async def main() -> None:
        prompt = random_prompt(7, 110) if stage == "prompt" else PROMPT
        streams = [client.generate([*faults.SLOW, *prompt], ENDLESS, request_id=f"r{n}") for n in range(3)]
        tasks = [asyncio.create_task(collect(stream)) for stream in streams]
        await reached(client, "num_requests_running", 1 if stage == "prompt" else 3)
        os.kill(before, signal.SIGKILL)
        for error in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(error, EngineDeadError)
            assert error.retry_after >= 1

    run(main())
    wait_for(lambda: client.restarts == restarts + 1)
    assert gone(before)
    assert joined(run(collect(begin(client, params=greedy()))))[1]


def test_a_child_that_replaces_another_draws_other_seeds(checkpoints, monkeypatch):
    """Calls that name no seed get other texts after each restart, and again the same from an engine started alike."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    params = SamplingParams(temperature=1.0, max_tokens=12, ignore_eos=True)
    named = replace(params, seed=4)
    policy = RestartPolicy(max_restarts=100, first_delay=0.01, longest_delay=0.01)
    lives: list[list[list[list[int]]]] = []
    for _ in range(2):
        client = EngineProcess(
            checkpoints.llama, speculative_config=None, restart_policy=policy, **(OPTIONS | {"seed": 11})
        )
        try:
            lives.append([])
            for life in range(3):
                found = [joined(run(collect(begin(client, params=each))))[1] for each in (params, params, named)]
                lives[-1].append(found)
                if life < 2:
                    os.kill(client.pid, signal.SIGKILL)
                    wait_for(lambda client=client, life=life: client.restarts == life + 1)
        finally:
            client.close()
    assert lives[0] == lives[1]
    unseeded = [tokens for first, second, _ in lives[0] for tokens in (first, second)]
    assert len({tuple(tokens) for tokens in unseeded}) == len(unseeded)
    assert len({tuple(life[2]) for life in lives[0]}) == 1
    with make(checkpoints.llama, **(OPTIONS | {"seed": 11})) as llm:
        assert tokens_of(llm.generate([PROMPT], params)) == [[lives[0][0][0]]]


@pytest.mark.parametrize("fault", ["SEGFAULT", "RAISE", "PANIC"])
def test_a_child_that_ends_in_a_step_is_replaced(fault, client, caplog):
    """RAISE is an engine that stopped: its process is of no use any more."""
    restarts = client.restarts

    async def main() -> None:
        mate = asyncio.create_task(collect(begin(client, faults.SLOW, name="mate")))
        await reached(client, "num_requests_running", 1)
        with pytest.raises(EngineDeadError):
            await collect(begin(client, getattr(faults, fault)))
        with pytest.raises(EngineDeadError):
            await mate

    run(main())
    wait_for(lambda: client.restarts == restarts + 1)
    assert ("SIGSEGV" if fault == "SEGFAULT" else "exit code 1") in caplog.text


@pytest.mark.parametrize("fault", ["PANIC_ON_ORDERS", "PANIC_ON_BEATS", "RAISE_ELSEWHERE"])
def test_a_child_that_loses_any_of_its_threads_is_replaced(fault, client, caplog):
    """Else it would look alive, and every later call would wait for ever."""
    restarts = client.restarts

    async def main() -> None:
        mate = asyncio.create_task(collect(begin(client, faults.SLOW, name="mate")))
        await reached(client, "num_requests_running", 1)
        for call in (collect(begin(client, getattr(faults, fault))), mate):
            with pytest.raises(EngineDeadError):
                await call

    run(main())
    wait_for(lambda: client.restarts == restarts + 1)
    assert "exit code 1" in caplog.text
    assert joined(run(collect(begin(client, params=greedy()))))[1]


def test_bad_words_come_to_the_child_as_tokens(client, checkpoints):
    """Its one thread takes everybody's calls and reads no text."""
    params = seeded(5, max_tokens=12)
    plain = joined(run(collect(begin(client, params=params))))
    banned = seeded(5, max_tokens=12, bad_words=[client.tokenizer.decode([token]) for token in plain[1][:2]])
    (expected,) = make(checkpoints.llama).generate([PROMPT], banned)
    assert joined(run(collect(begin(client, params=banned)))) == (
        expected.outputs[0].text,
        expected.outputs[0].token_ids,
    )
    assert expected.outputs[0].token_ids != plain[1]
    nothing = CallOptions(bad_words_token_ids=())  # what the child goes by, then
    assert joined(run(collect(client.generate(PROMPT, banned, request_id="mine", options=nothing)))) == plain


def test_a_stuck_step_is_a_stall_and_in_the_end_the_childs_death(client, monkeypatch):
    restarts = client.restarts
    monkeypatch.setattr(client._supervisor, "stall_seconds", 1.5)

    async def main() -> None:
        task = asyncio.create_task(collect(begin(client, faults.STUCK)))
        await asyncio.to_thread(wait_for, lambda: client.stalled)
        assert client.alive
        assert not client.ready
        with pytest.raises(EngineStalledError, match="stuck"):
            await asyncio.to_thread(client.stats)
        monkeypatch.setattr(client._supervisor, "kill_seconds", 2.0)
        with pytest.raises(EngineDeadError):
            await task

    run(main())
    wait_for(lambda: client.restarts == restarts + 1)
    assert not client.stalled


def test_a_slow_reader_holds_up_nobody_and_misses_nothing(client):
    async def main() -> None:
        slow = begin(client, name="slow")
        updates = [await anext(slow)]
        expected = await collect(begin(client, name="quick"))
        while (await asyncio.to_thread(client.stats))["num_requests_running"]:
            await asyncio.sleep(0.005)
        updates += await collect(slow)
        assert joined(updates) == joined(expected)
        assert len(updates) == 2 < len(expected)

    run(main())


def test_signals_of_a_terminal_are_for_the_parent(client):
    async def main() -> None:
        stream = begin(client, faults.SLOW, params=greedy(max_tokens=6))
        updates = [await anext(stream)]
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(client.pid, number)
        assert len(joined(updates + await collect(stream))[1]) == 6

    restarts = client.restarts
    run(main())
    assert client.restarts == restarts
    assert os.getpgid(client.pid) != os.getpgid(0)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux")
@pytest.mark.parametrize("own", [None, "7"])
def test_threads_of_the_child_do_not_wait_awake_unless_told_to(own, monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if own is not None:
        monkeypatch.setenv("GOMP_SPINCOUNT", own)
    mine, its = socket.socketpair()
    with mine, its:
        child = launch._spawn(its)
        wait_for(lambda: b"GOMP_SPINCOUNT" in Path(f"/proc/{child.pid}/environ").read_bytes())
        settings = Path(f"/proc/{child.pid}/environ").read_bytes().split(b"\0")
        child.kill()
        child.wait()
    assert f"GOMP_SPINCOUNT={own or 1000}".encode() in settings


PARENT = """
import os, sys, time
from paceline.engine.process.client import EngineProcess
client = EngineProcess(sys.argv[1], speculative_config=None, device="cpu")
print(client.pid, flush=True)
{ending}
"""


@pytest.mark.parametrize("ending", ["kill -9", "returns"])
def test_no_child_outlives_its_parent(ending, checkpoints):
    code = PARENT.format(ending="time.sleep(600)" if ending == "kill -9" else "")
    command = [sys.executable, "-c", code, str(checkpoints.llama)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        if ending == "kill -9":
            assert not gone(child)
            parent.kill()
        parent.wait(30)
    wait_for(lambda: gone(child))


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("nowhere/at/all", {}),
        ("llama", {"cache": "heap"}),
    ],
)
def test_a_start_fails_with_the_error_of_an_llm(model, options, checkpoints, monkeypatch):
    path = getattr(checkpoints, model, model)
    with pytest.raises(PacelineError) as expected:
        make(path, **options)
    started = []
    monkeypatch.setattr(launch, "_spawn", lambda end, spawn=launch._spawn: started.append(spawn(end)) or started[-1])
    with pytest.raises(type(expected.value)) as refused:
        EngineProcess(path, **{"speculative_config": None, **OPTIONS, **options})
    assert str(refused.value) == str(expected.value)
    assert all(gone(child.pid) for child in started)


def test_what_a_call_asks_besides_tokens_crosses_the_link(client):
    async def main() -> list[list[StreamUpdate]]:
        drafted, plain = (
            client.generate(PROMPT, ENDLESS, request_id=f"r{on}", options=CallOptions(speculate=on))
            for on in (True, False)
        )
        return [await collect(drafted), await collect(plain)]

    drafted, plain = run(main())
    assert joined(drafted) == joined(plain)
    assert drafted[-1].metrics.num_drafted > plain[-1].metrics.num_drafted == 0
