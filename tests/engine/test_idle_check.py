"""Books that went wrong are found and made anew once nothing runs; the texts after that are what they were."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from paceline.engine import idle_check
from paceline.engine.worker import EngineWorker
from tests.support.calls import assert_idle, greedy, make, random_prompt
from tests.support.waiting import wait_for

PROMPT, NUMBERS = random_prompt(5, 20), itertools.count()


def reference_leaks(engine) -> None:
    engine.cache.groups[0].pages.references[engine.cache.groups[0].pages.num_pages] += 1


def free_page_vanishes(engine) -> None:
    engine.cache.groups[0].pages._num_used += 1  # handed out to nobody


def seat_keeps_pages(engine) -> None:
    """The books agree with one another, but nobody will ever give the page back."""
    assert engine.cache.reserve(engine.seats.capacity - 1, 5, [0])


def answer(worker: EngineWorker) -> list[int]:
    async def ask():
        stream = worker.generate(PROMPT, greedy(), request_id=f"call-{next(NUMBERS)}")
        return [token async for update in stream for delta in update.deltas for token in delta.token_ids]

    return asyncio.run(asyncio.wait_for(ask(), 60))


@pytest.fixture(params=["plain", "near"])
def worker(request, checkpoints, monkeypatch):
    monkeypatch.setattr(idle_check, "MAX_SHARE", 1.0)
    worker = EngineWorker(make(checkpoints.llama, checkpoints.near if request.param == "near" else None))
    yield worker
    worker.close()


@pytest.mark.parametrize("fault", [reference_leaks, free_page_vanishes, seat_keeps_pages])
def test_wrong_books_are_made_anew_at_rest(worker, caplog, fault):
    engine = worker.llm.engine
    before = answer(worker)
    fault(engine)
    assert answer(worker) == before
    wait_for(lambda: "the books of the KV cache were wrong" in caplog.text)
    wait_for(lambda: not engine.cache.counts().referenced)
    assert_idle(engine)
    assert answer(worker) == before


def test_sound_books_are_left_alone(worker, caplog):
    for _ in range(3):
        answer(worker)
    engine = worker.llm.engine
    wait_for(lambda: not engine.has_work)
    assert engine.cache.counts().cached > 0
    assert "books" not in caplog.text


def test_checking_takes_a_small_share_of_the_time(worker, monkeypatch):
    """A pool that takes long to check is checked rarely, however often the engine comes to rest."""
    monkeypatch.setattr(idle_check, "MAX_SHARE", 1e-9)
    checks = []
    cache = worker.llm.engine.cache
    check = cache.check
    monkeypatch.setattr(cache, "check", lambda: checks.append(check()))
    for _ in range(4):
        answer(worker)
    assert len(checks) <= 1
