"""A step that nobody waits for any more ends in its middle; nothing has happened then, and no other text changes."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline import LLM
from paceline.core.errors import EngineDeadError
from paceline.engine.engine import Engine
from paceline.engine.worker import EngineWorker
from paceline.kernels.native import region
from tests.engine.test_interrupts import PLAIN, SETTINGS, SMALL, ask, told
from tests.support.calls import assert_idle, begin, finish, greedy, make, random_prompt, seeded, tokens_of
from tests.support.checkpoints import tiny_llama
from tests.support.native import needs_library
from tests.support.waiting import wait_for

LAYERS = 48
LONG = random_prompt(7, 900)
IMPL: dict[str, dict[str, Any]] = {
    "native": {"model_impl": "native", "dtype": "float32"},
    "torch": {"model_impl": "torch", "dtype": "float32"},
}


class Looks:
    """Has something done each time that whoever computes is about to look at the flag, on the thread that computes."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act

    def start(self) -> None:
        self._act()

    def stop(self) -> None:
        pass


@contextmanager
def before_looks(engine: Engine, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``act`` before each native call and before each layer's attention in torch, of the target and the drafter."""
    drafter = engine.proposer.tools.runner if engine.proposer is not None else None
    for runner in (engine.runner, drafter):
        inner = getattr(runner.executor, "_attend", None) if runner is not None else None
        if runner is not None and inner is not None:

            def attend(*args: Any, inner: Any = inner) -> Any:
                act()
                return inner(*args)

            monkeypatch.setattr(runner.executor, "_attend", attend)
    looks = Looks(act)
    region.watches.append(looks)
    try:
        yield
    finally:
        region.watches.remove(looks)


@pytest.fixture(scope="module")
def deep(tmp_path_factory) -> Path:
    """Of many layers, so that a pass has many ops."""
    path = tmp_path_factory.mktemp("deep")
    tiny_llama(path, layers=LAYERS, hidden=128, intermediate=256, max_positions=1024)
    return path


@pytest.fixture(params=[pytest.param("native", marks=needs_library), "torch"])
def deep_llm(request, deep) -> LLM:
    return make(deep, max_num_batched_tokens=2048, **IMPL[request.param])


def layers_written(llm: LLM) -> int:
    """Layers into whose K/V anything was written since the pools were made."""
    (group,) = llm.engine.runner.groups
    return sum(bool(group.store.pools(layer)[0][1:].any()) for layer in range(LAYERS))


@contextmanager
def once_layers_are_written(llm: LLM, act: Callable[[], None]) -> Iterator[list[int]]:
    """``act`` on another thread once a pass has begun; how many layers it had come to, looked at again and again."""
    written, over = list[int](), threading.Event()

    def watch() -> None:
        wait_for(lambda: layers_written(llm) > 0)
        act()
        while not over.is_set():
            written.append(layers_written(llm))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield written
    finally:
        over.set()
        thread.join(60)


@pytest.mark.parametrize("setting", SETTINGS)
def test_steps_that_are_cut_short_anywhere_change_no_text(setting: str, checkpoints, monkeypatch) -> None:
    """Also where somebody waits for them, as when an abort comes too late for its own step."""
    options = {**SMALL, **SETTINGS[setting]}
    draft = getattr(checkpoints, options.pop("draft")) if "draft" in options else None
    llm = make(checkpoints.llama, draft, **options)
    expected, random = told(ask(llm, setting)), np.random.default_rng(1)

    def act() -> None:
        if random.random() < (0.4 if setting in PLAIN else 0.04):
            llm.engine.abandonment.flag.set()

    with before_looks(llm.engine, act, monkeypatch):
        for _ in range(4):
            assert told(ask(llm, setting)) == expected
            assert_idle(llm.engine)
    assert llm.engine.abandonment.num_interrupted > 5
    assert told(ask(llm, setting)) == expected


def test_an_abort_ends_a_prompt_chunk_in_its_middle(deep_llm: LLM) -> None:
    """While it is computed: another thread aborts once the first layers are there, and the last ones never come."""
    worker, params = EngineWorker(deep_llm), greedy(max_tokens=2)

    async def main() -> Any:
        return await asyncio.wait_for(_collect(worker.generate(LONG, params, request_id="mine")), 60)

    try:
        with once_layers_are_written(deep_llm, lambda: worker.abort("mine")) as written:
            updates = asyncio.run(main())
        assert [delta.finish_reason for delta in updates[-1].deltas] == ["abort"]
        assert max(written, default=0) < LAYERS
        assert deep_llm.engine.abandonment.num_interrupted == 1
        assert_idle(deep_llm.engine)
        again = [asyncio.run(_collect(worker.generate(LONG, params, request_id="mine"))) for _ in range(2)]
        assert tokens(again[0]) == tokens(again[1]) != []
    finally:
        worker.close()


def tokens(updates: list[Any]) -> list[int]:
    return [token for update in updates for delta in update.deltas for token in delta.token_ids]


async def _collect(stream: Any) -> list[Any]:
    return [update async for update in stream]


@pytest.mark.parametrize("leaving", [["a"], ["a", "b"], ["b", "c"], ["a", "b", "c"]])
def test_only_a_step_of_nobody_else_is_cut_short(leaving: list[str], checkpoints, monkeypatch) -> None:
    llm = make(checkpoints.llama, **IMPL["torch"])
    names = ["a", "b", "c"]
    prompts = {name: random_prompt(number, 7) for number, name in enumerate(names)}
    params = seeded(4, max_tokens=9, n=2, ignore_eos=True)
    expected = {name: tokens_of(llm.generate(prompts[name], params))[0] for name in names}
    engine = llm.engine
    made = llm.input_processor
    groups = {name: begin(engine, prompts[name], params, processor=made, request_id=name) for name in names}

    def act() -> None:
        for name in leaving:
            engine.abandonment.add(name)
        engine.abandonment.look()

    with before_looks(engine, act, monkeypatch):
        while not engine.abandonment.num_interrupted and not all(group.finished for group in groups.values()):
            engine.step()
    assert bool(engine.abandonment.num_interrupted) == (len(leaving) == len(names))
    for name in leaving:
        engine.abort(groups[name])
        engine.abandonment.forget(name)
    finish(engine, list(groups.values()))
    for name in set(names) - set(leaving):
        assert [member.output_token_ids for member in groups[name].members] == expected[name]
    assert_idle(engine)


def test_closing_a_worker_ends_its_step(deep_llm: LLM, monkeypatch) -> None:
    worker = EngineWorker(deep_llm)

    async def main() -> None:
        with suppress(EngineDeadError):
            await _collect(worker.generate(LONG, greedy(max_tokens=2), request_id="mine"))

    with before_looks(deep_llm.engine, worker.loop.stop, monkeypatch):
        asyncio.run(asyncio.wait_for(main(), 60))
        worker.close()
    assert deep_llm.engine.abandonment.num_interrupted == 1
    assert not worker._thread.is_alive()
    assert_idle(deep_llm.engine)


def test_closing_an_llm_ends_the_step_of_another_thread(deep_llm: LLM) -> None:
    abandonment, ended = deep_llm.engine.abandonment, []

    def call() -> None:
        try:
            deep_llm.generate(LONG, greedy(max_tokens=100, ignore_eos=True))
        except EngineDeadError:
            ended.append("closed")

    thread = threading.Thread(target=call)
    thread.start()
    wait_for(lambda: layers_written(deep_llm) > 0)
    deep_llm.close()
    thread.join(60)
    assert ended == ["closed"]
    assert abandonment.num_interrupted == 1


@pytest.mark.parametrize("handler", ["Ctrl-C", "returns"])
def test_ctrl_c_ends_the_step_of_the_main_thread(handler: str, deep_llm: LLM) -> None:
    """A handler that raises ends the call at once; one that returns leaves the call's text as it is."""
    assert threading.current_thread() is threading.main_thread()
    assert signal.set_wakeup_fd(-1) == -1
    seen, params = list[int](), greedy(max_tokens=3)
    chosen = signal.default_int_handler if handler == "Ctrl-C" else lambda *_: seen.append(1)
    before = signal.signal(signal.SIGINT, chosen)
    try:
        with once_layers_are_written(deep_llm, lambda: os.kill(os.getpid(), signal.SIGINT)) as written:
            if handler == "Ctrl-C":
                with pytest.raises(KeyboardInterrupt):
                    deep_llm.generate(LONG, params)
            else:
                found = tokens_of(deep_llm.generate(LONG, params))
    finally:
        signal.signal(signal.SIGINT, before)
    if handler == "Ctrl-C":
        assert max(written, default=0) < LAYERS
    else:
        assert seen == [1]
        assert deep_llm.engine.abandonment.num_interrupted == 1
        assert found == tokens_of(deep_llm.generate(LONG, params))
    assert signal.set_wakeup_fd(-1) == -1
    assert_idle(deep_llm.engine)
