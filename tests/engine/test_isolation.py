"""A request that makes a step raise ends alone: its batch mates' tokens are those of a step without it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from paceline.cache import KVGroup
from paceline.core.request import Group, Request
from paceline.core.step import StepPlan
from paceline.engine import engine as engine_module
from paceline.engine.engine import Engine
from paceline.engine.isolation import isolate
from paceline.engine.worker import EngineWorker
from paceline.sampling import Pipeline, SamplingState
from tests.support.calls import assert_idle, begin, finish, greedy, make, random_prompt, seeded
from tests.support.engines import Models
from tests.support.executors import around_passes

PROMPTS = [random_prompt(seed, length) for seed, length in ((1, 9), (2, 17), (3, 4), (4, 12), (5, 6))]
PARAMS = [
    greedy(max_tokens=14),
    seeded(4, max_tokens=12, logprobs=1),
    seeded(5, max_tokens=16, n=2),
    seeded(6, max_tokens=10, repetition_penalty=1.2),
    greedy(max_tokens=12, prompt_logprobs=1),
]
BAD = random_prompt(9, 11)
SPECULATION: dict[str, Any] = {
    "off": None,
    "near": {"method": "draft_model", "model": "near", "num_speculative_tokens": 4},
    "ngram": {"method": "ngram", "prompt_lookup_min": 1},
    "suffix": {"method": "suffix"},
    "token_recycling": {"method": "token_recycling"},
    "lookahead": {"method": "lookahead"},
}
SMALL: dict[str, Any] = {"block_size": 4, "num_blocks": 60, "max_num_batched_tokens": 24}
ERRORS = [RuntimeError("poison"), torch.OutOfMemoryError("out of memory"), MemoryError()]


def mates(engine: Engine) -> list[Group]:
    return [begin(engine, prompt, params) for prompt, params in zip(PROMPTS, PARAMS, strict=True)]


@pytest.fixture(scope="module")
def expected(models: Models) -> list[Any]:
    engine = models.engine()
    return finish(engine, mates(engine))


class Poison:
    """Makes passes raise that compute a row of one request, once it has ``after`` output tokens; leaves NaN behind."""

    def __init__(self, engine: Engine, victim: Request, error: BaseException, *, after: int = 0) -> None:
        self.engine, self.victim, self.error, self.after = engine, victim, error, after
        self.num_calls = self.num_raised = 0
        around_passes(engine.runner, self._around)

    def _around(self, batch: Any, compute: Callable[[], Any]) -> Any:
        self.num_calls += 1
        group, seat = self.engine.cache.groups[0], self.victim.seat
        mine = group.held_pages(seat) if seat >= 0 and len(self.victim.output_token_ids) >= self.after else []
        output = compute()
        if np.isin(batch.cells[0] // group.page_size, mine).any():
            self.num_raised += 1
            self._spoil(group, seat, len(mine))
            raise self.error.with_traceback(None)
        return output

    @staticmethod
    def _spoil(group: KVGroup, seat: int, num_pages: int) -> None:
        """NaN in every cell of the request's pages that holds nothing of worth."""
        slots = np.arange(group.num_cached[seat], num_pages * group.page_size, dtype=np.int32)
        cells = torch.from_numpy(group.cells(np.full(len(slots), seat), slots))
        for layer in range(2):
            for store in (group.store._k[layer], group.store._v[layer]):
                store[cells // group.page_size, :, cells % group.page_size] = math.nan


def assert_failed(group: Group, num_tokens: int | None = None) -> None:
    for member in group.members:
        assert member.finish_reason == "error"
        assert "the engine failed on this request" in member.error or "could not take" in member.error
        assert member.error.count("(") == 1
        assert num_tokens is None or len(member.output_token_ids) >= num_tokens


def assert_clean(engine: Engine) -> None:
    """No page that somebody may get holds NaN."""
    assert_idle(engine)
    for layers in engine.cache.groups:
        pages = torch.arange(layers.pages.num_pages + 1)
        assert all(bool(cells.isfinite().all()) for cells in layers.store.read(0, pages))


def check_poison(models: Models, expected: Any, speculation: str, error: Exception, after: int) -> Engine:
    engine = models.engine(SPECULATION[speculation], **SMALL)
    bad = begin(engine, BAD, greedy(max_tokens=30, ignore_eos=True))
    groups = mates(engine)
    poison = Poison(engine, bad.members[0], error, after=after)
    assert finish(engine, [bad, *groups])[1:] == expected
    assert_failed(bad, after)
    assert 1 <= poison.num_raised <= 2 + math.log2(8)
    assert_clean(engine)
    assert engine.counters.finished["error"] == 1
    again = mates(engine)
    assert finish(engine, again) == expected
    return engine


@pytest.mark.parametrize("after", [0, 5], ids=["in its prompt", "in its answer"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("speculation", SPECULATION)
def test_a_poison_request_fails_alone(speculation, error, after, models: Models, expected) -> None:
    engine = check_poison(models, expected, speculation, error, after)
    if speculation != "off":
        assert engine.counters.num_accepted > 0


def fail_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    def everybody(plan: Any, attempt: Any, fail: Callable[[Request], None]) -> None:
        for request in plan.requests:
            fail(request)

    monkeypatch.setattr(engine_module, "isolate", everybody)


def fail_the_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    def blame(plan: Any, attempt: Any, fail: Callable[[Request], None]) -> None:
        isolate(plan, attempt, lambda one: fail(next((r for r in plan.requests if r is not one), one)))

    monkeypatch.setattr(engine_module, "isolate", blame)


def cut_seats_apart_from_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    true = StepPlan.select

    def wrong(plan: StepPlan, chosen: Any) -> Any:
        part = true(plan, chosen)
        return replace(part, seats=plan.seats[-len(part) :] if chosen.start is None else plan.seats[: len(part)])

    monkeypatch.setattr(StepPlan, "select", wrong)


@pytest.mark.parametrize("plant", [fail_everybody, fail_the_neighbour, cut_seats_apart_from_requests])
def test_planted_bug_is_caught(plant, models: Models, expected, monkeypatch) -> None:
    check_poison(models, expected, "near", ERRORS[0], 3)
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_poison(models, expected, "near", ERRORS[0], 3)


@pytest.mark.parametrize("clears", [True, False], ids=["as it is", "planted bug"])
def test_what_a_failed_step_wrote_reaches_nobody(clears, models: Models, monkeypatch) -> None:
    if not clears:
        monkeypatch.setattr(KVGroup, "clear", KVGroup.release)
    engine = models.engine(SPECULATION["near"], **SMALL)
    bad = begin(engine, BAD, greedy(ignore_eos=True))
    Poison(engine, bad.members[0], ERRORS[0], after=3)
    finish(engine, [bad])
    assert_failed(bad)
    if clears:
        assert_clean(engine)
    else:
        with pytest.raises(AssertionError):
            assert_clean(engine)


@pytest.mark.parametrize("speculation", SPECULATION)
def test_what_fails_once_is_repeated_and_harms_nobody(speculation, models: Models, expected) -> None:
    engine = models.engine(SPECULATION[speculation], **SMALL)
    calls = iter(range(10**9))

    def unsteady(_: Any, compute: Callable[[], Any]) -> Any:
        if next(calls) % 5 == 3:
            raise RuntimeError("now and then")
        return compute()

    around_passes(engine.runner, unsteady)
    assert finish(engine, mates(engine)) == expected
    assert_clean(engine)
    assert not engine.counters.finished["error"]


@pytest.mark.parametrize("speculation", SPECULATION)
def test_a_step_too_large_for_memory_is_done_in_parts(speculation, models: Models, expected) -> None:
    engine = models.engine(SPECULATION[speculation], **SMALL)
    passes = []

    def small(batch: Any, compute: Callable[[], Any]) -> Any:
        if len(batch.token_ids) > 17:
            raise torch.OutOfMemoryError("out of memory")
        passes.append(len(batch.token_ids))
        return compute()

    around_passes(engine.runner, small)
    assert finish(engine, mates(engine)) == expected
    assert max(passes) <= 17
    assert not engine.counters.finished["error"]


@pytest.mark.parametrize("num_calls", [1, 5])
@pytest.mark.parametrize("speculation", SPECULATION)
def test_a_lost_device_ends_the_engine_after_bounded_work(num_calls, speculation, models: Models, expected) -> None:
    engine = models.engine(SPECULATION[speculation], **SMALL)
    groups = mates(engine)[:num_calls]
    for _ in range(4):
        engine.step()
    calls = []

    def lost(batch: Any, _: Callable[[], Any]) -> Any:
        calls.append(len(batch.token_ids))
        raise RuntimeError("the device is gone")

    recover = around_passes(engine.runner, lost)
    with pytest.raises(RuntimeError, match="the device is gone"):
        engine.step()
    assert len(calls) <= 3 + math.log2(8)
    for group in groups:
        engine.abort(group)
    for request in [*engine.scheduler.running, *engine.scheduler.waiting]:
        engine.abort(request.group)
    assert_clean(engine)
    recover()
    assert finish(engine, mates(engine)) == expected


def test_poison_without_a_mate_does_not_end_the_engine(models: Models, expected) -> None:
    engine = models.engine(**SMALL)
    for _ in range(3):
        bad = begin(engine, BAD, greedy())
        Poison(engine, bad.members[0], ERRORS[0])
        finish(engine, [bad])
        assert_failed(bad)
    assert finish(engine, mates(engine)) == expected
    assert_clean(engine)


def seats_of(group: Group) -> list[int]:
    return [member.seat for member in group.members if member.seat >= 0]


def meets(rows: Iterable[int], group: Group) -> bool:
    return bool({int(row) for row in rows} & set(seats_of(group)))


PARTS = ["sample", "logprobs", "commit", "join"]


@pytest.mark.parametrize("speculation", SPECULATION)
@pytest.mark.parametrize("part", PARTS)
def test_controls_that_raise_fail_their_request(part, speculation, models: Models, expected, monkeypatch) -> None:
    engine = models.engine(SPECULATION[speculation], **SMALL)
    groups = mates(engine)
    bad = begin(engine, BAD, seeded(1, n=2, logprobs=7, frequency_penalty=0.5, ignore_eos=True))

    def guard(owner: type, name: str, is_bad: Callable[..., bool]) -> None:
        true = getattr(owner, name)

        def raising(self: Any, *arguments: Any) -> Any:
            if is_bad(*arguments):
                raise ValueError("a control")
            return true(self, *arguments)

        monkeypatch.setattr(owner, name, raising)

    if part == "sample":
        guard(Pipeline, "sample", lambda logits, rows: meets(rows.seats, bad) and (rows.output_index > 2).any())
    elif part == "logprobs":
        guard(Pipeline, "logprobs", lambda logits, rows, tokens, top: 7 in top)
    elif part == "commit":
        guard(SamplingState, "commit", lambda seat, tokens: seat in seats_of(bad))
    else:
        guard(SamplingState, "join", lambda request: request.group is bad)
    assert finish(engine, [*groups, bad])[:-1] == expected
    assert_failed(bad)
    assert_clean(engine)
    assert engine.counters.finished["error"] == 2


class BrokenWatcher:
    """Fails on the fourth token."""

    def __init__(self) -> None:
        self.count = 0

    def push(self, token: int) -> bool:
        self.count += 1
        if self.count == 4:
            raise IndexError("a detokenizer")
        return False


@pytest.mark.parametrize("speculation", SPECULATION)
def test_a_watcher_that_raises_fails_its_request(speculation, models: Models, expected) -> None:
    engine = models.engine(SPECULATION[speculation], **SMALL)
    groups = mates(engine)
    bad = begin(engine, BAD, greedy(ignore_eos=True, logprobs=1))
    bad.members[0].detokenizer = BrokenWatcher()
    assert finish(engine, [*groups, bad])[:-1] == expected
    assert_failed(bad)
    assert len(bad.members[0].output_token_ids) == len(bad.members[0].logprobs) <= 3
    assert_clean(engine)


def test_a_text_that_cannot_be_told_ends_its_stream_only(checkpoints, plain) -> None:
    """The detokenizer works, but what became text cannot be had of it."""
    prompts = PROMPTS[:3]
    expected = plain.generate(prompts, greedy(max_tokens=20))
    worker = EngineWorker(make(checkpoints.llama, checkpoints.near))
    true = worker.llm.input_processor.group

    def group(tokens: Any, params: Any, **more: Any) -> Group:
        made = true(tokens, params, **more)
        if made.id == "r1":
            made.members[0].detokenizer.take_delta = lambda finished: 1 / 0
        return made

    worker.llm.input_processor.group = group  # type: ignore[method-assign]

    async def collect(number: int) -> list[Any]:
        stream = worker.generate(prompts[number], greedy(max_tokens=20), request_id=f"r{number}")
        return [update async for update in stream]

    async def main() -> list[list[Any]]:
        return await asyncio.wait_for(asyncio.gather(*map(collect, range(3))), 30)

    try:
        first, broken, third = asyncio.run(main())
    finally:
        worker.close()
    for updates, output in ((first, expected[0]), (third, expected[2])):
        tokens = [token for update in updates for delta in update.deltas for token in delta.token_ids]
        assert tokens == output.outputs[0].token_ids
    assert broken[-1].finished
    assert broken[-1].deltas[0].finish_reason == "error"
    assert_idle(worker.llm.engine)


@pytest.mark.parametrize("num_requests", [1, 2, 3, 8, 13])
def test_isolating_finds_every_culprit_and_attempts_everybody_else_once(num_requests, models: Models) -> None:
    engine = models.engine(max_num_seqs=16)
    for number in range(num_requests):
        begin(engine, random_prompt(number, 5), greedy())
    plan = engine.scheduler.plan()
    assert len(plan) == num_requests
    for bad in range(2**num_requests if num_requests < 4 else 40):
        culprits = {r for place, r in enumerate(plan.requests) if (bad * 37 >> place) & 1}
        done: list[Request] = []
        failed: list[Request] = []
        attempts: list[int] = []

        def attempt(part: Any, culprits=culprits, done=done, attempts=attempts) -> bool:
            attempts.append(len(part))
            assert [request.seat for request in part.requests] == part.seats.tolist()
            if culprits & set(part.requests):
                return False
            done.extend(part.requests)
            return True

        isolate(plan, attempt, failed.append)
        assert set(failed) == culprits
        assert len(done) == len(set(done)) == num_requests - len(culprits)
        assert len(attempts) <= 1 + 2 * max(1, len(culprits)) * math.ceil(math.log2(num_requests) or 1)
