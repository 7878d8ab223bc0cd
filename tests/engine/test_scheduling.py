"""Who runs when: decodes beside long prompts, admission in order, preemption of the latest, and always progress."""

from __future__ import annotations

from typing import Any

import pytest

from paceline import InvalidRequestError
from paceline.engine.input_processor import InputProcessor
from tests.support.calls import VOCAB_SIZE, answers, assert_idle, begin, finish, greedy, random_prompt, seeded
from tests.support.engines import Models
from tests.support.executors import around_passes, scripted_models

NEAR = {"method": "draft_model", "model": "near", "num_speculative_tokens": 4}
SPECULATION: dict[str, Any] = {"off": None, "near": NEAR, "ngram": {"method": "ngram", "prompt_lookup_min": 1}}


@pytest.fixture(scope="module")
def models() -> Models:
    return scripted_models(VOCAB_SIZE)


@pytest.fixture(params=SPECULATION)
def speculation(request) -> Any:
    return SPECULATION[request.param]


@pytest.mark.parametrize("budget", [4, 8, 16])
@pytest.mark.parametrize("num_decoding", [1, 3])
def test_a_long_prompt_does_not_stall_decodes(budget, num_decoding, speculation, models: Models) -> None:
    """Under a small token budget every decoding request gets a token in every step, and the prompt advances too."""
    engine = models.engine(speculation, max_num_batched_tokens=budget, block_size=4)
    decoding = [begin(engine, random_prompt(n, 3), seeded(n, max_tokens=60)) for n in range(num_decoding)]
    while not all(answers(group)[0] for group in decoding):
        engine.step()
    long = begin(engine, random_prompt(9, 90), greedy())
    steps = 0
    while not answers(long)[0]:
        before = [len(answers(group)[0]) for group in decoding]
        engine.step()
        steps += 1
        for group, count in zip(decoding, before, strict=True):
            assert group.finished or len(answers(group)[0]) > count
    assert steps >= 90 // budget
    assert steps <= 91
    finish(engine, [long, *decoding])


@pytest.mark.parametrize("budget", [3, 5, 8])
def test_drafts_leave_room_for_the_other_decodes(budget, models: Models) -> None:
    engine = models.engine({**NEAR, "num_speculative_tokens": 7}, max_num_batched_tokens=budget)
    groups = [begin(engine, random_prompt(n, 4), greedy(max_tokens=20)) for n in range(3)]
    while not all(answers(group)[0] for group in groups):
        engine.step()
    while not any(group.finished for group in groups):
        before = [len(answers(group)[0]) for group in groups]
        engine.step()
        assert all(len(answers(group)[0]) > count for group, count in zip(groups, before, strict=True))
    finish(engine, groups)


def test_no_step_exceeds_the_token_budget(speculation, models: Models) -> None:
    engine = models.engine(speculation, max_num_batched_tokens=9, block_size=4)
    rows = []
    around_passes(engine.runner, lambda batch, compute: rows.append(len(batch.token_ids)) or compute())
    groups = [begin(engine, random_prompt(n, 5 + 9 * n), seeded(n, n=2)) for n in range(4)]
    finish(engine, groups)
    assert max(rows) == 9


def test_first_come_first_served(speculation, models: Models) -> None:
    engine = models.engine(speculation, max_num_seqs=2)
    groups = [begin(engine, random_prompt(n, 6), greedy(max_tokens=3 + n)) for n in range(6)]
    started = []

    def note() -> None:
        started.extend(g for g in groups if answers(g)[0] and g not in started)

    finish(engine, groups, note)
    assert started == groups


@pytest.mark.parametrize("num_blocks", [14, 17, 20, 25])
def test_a_pool_too_small_for_all_changes_no_token(num_blocks, speculation, models: Models) -> None:
    """Whoever came last gives way; the first is never preempted."""
    plain = models.engine()
    jobs = [(random_prompt(n, 20 + n), seeded(n, max_tokens=30, n=1 + n % 2)) for n in range(5)]
    expected = finish(plain, [begin(plain, *job) for job in jobs])
    engine = models.engine(speculation, num_blocks=num_blocks, block_size=4)
    groups = [begin(engine, *job) for job in jobs]
    assert finish(engine, groups) == expected
    assert engine.scheduler.num_preemptions > 0
    counts = [sum(member.num_preemptions for member in group.members) for group in groups]
    assert counts[0] == 0
    assert sum(counts) == engine.scheduler.num_preemptions
    assert_idle(engine)


def test_the_latest_gives_way(models: Models) -> None:
    engine = models.engine(num_blocks=12, block_size=4)
    groups = [begin(engine, random_prompt(n, 12), greedy(max_tokens=30, ignore_eos=True)) for n in range(3)]

    def nobody_was_passed_over() -> None:
        counts = [group.members[0].num_preemptions for group in groups]
        assert counts == sorted(counts)

    finish(engine, groups, nobody_was_passed_over)
    assert groups[2].members[0].num_preemptions > 0
    assert groups[0].members[0].num_preemptions == 0


@pytest.mark.parametrize("cache", ["paged", "static", "none"])
@pytest.mark.parametrize("budget", [1, 2, 7])
def test_the_tightest_engine_makes_progress(cache, budget, speculation, models: Models) -> None:
    """Pages for one request only, one or two seats, a token or two per step."""
    jobs = [(random_prompt(n, 5 + n), seeded(n, max_tokens=8, n=1 + n % 3)) for n in range(4)]
    plain = models.engine()
    expected = finish(plain, [begin(plain, *job) for job in jobs])
    pages = {"paged": 16, "static": 1, "none": 16}[cache]
    engine = models.engine(
        speculation, num_blocks=pages, block_size=1, cache=cache, max_num_seqs=2, max_num_batched_tokens=budget
    )
    assert finish(engine, [begin(engine, *job) for job in jobs]) == expected
    assert_idle(engine)


def test_what_can_never_fit_is_refused_at_once(speculation, models: Models) -> None:
    engine = models.engine(speculation, num_blocks=6, block_size=4)
    processor = InputProcessor(engine, None)
    assert processor.group(random_prompt(1, 12), greedy(max_tokens=12))
    with pytest.raises(InvalidRequestError, match=r"num_blocks|max_tokens"):
        processor.group(random_prompt(1, 12), greedy(max_tokens=13))
    exact = begin(engine, random_prompt(1, 12), greedy(max_tokens=12, ignore_eos=True))
    assert len(finish(engine, [exact])[0][0]) == 12


def test_aborting_wherever_a_request_is(speculation, models: Models) -> None:
    """Queued, in mid-prompt, decoding, and already gone."""
    engine = models.engine(speculation, max_num_seqs=2, max_num_batched_tokens=16, block_size=4)
    decoding, prefilling, queued = (
        begin(engine, random_prompt(n, length), seeded(n, max_tokens=40)) for n, length in enumerate((4, 80, 5))
    )
    for _ in range(3):
        engine.step()
    assert answers(decoding)[0]
    assert not answers(prefilling)[0]
    assert prefilling.members[0].seat >= 0
    assert queued.members[0].seat < 0
    for group in (queued, prefilling, decoding):
        engine.abort(group)
        engine.abort(group)
        assert group.members[0].finish_reason == "abort"
        engine.cache.check()
    assert_idle(engine)
    assert engine.counters.finished == {"abort": 3}
    assert not engine.has_work
    assert engine.step() == []
