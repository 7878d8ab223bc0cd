"""Prompt chunks beside decoding requests: sized by what rows cost, visible in no token. No clock is looked at."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from paceline.core.call import CallOptions
from paceline.core.request import Group
from paceline.engine.engine import Engine
from paceline.scheduling.pacer import FEWEST_ROWS, FIRST_ROWS, NO_BOUND, OUTDATED, ChunkPacer
from tests.support import proposers
from tests.support.calls import answers, assert_idle, begin, finish, random_prompt, seeded
from tests.support.engines import Models

VOCAB = 61
TARGET = 0.05
Cost = Callable[[int], float]
MACHINES: dict[str, Cost] = {
    "slow": lambda rows: 0.06 + 0.004 * rows,
    "steady": lambda rows: 0.01 + 0.0004 * rows,
    "fast": lambda rows: 0.002 + 0.00002 * rows,
    "weights": lambda rows: max(0.03, 0.001 * rows),
    "long texts": lambda rows: 0.01 + 0.0002 * rows + 1e-7 * rows * rows,
}


def ideal(cost: Cost) -> int:
    return max(FEWEST_ROWS, *(rows for rows in range(1, 4000) if cost(rows) <= cost(0) + TARGET))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("first", ["whole budget", "nothing", "short prompt"])
def test_chunks_come_to_fill_the_target(machine: str, first: str) -> None:
    cost, pacer, noise = MACHINES[machine], ChunkPacer(TARGET), random.Random(1)
    if first == "whole budget":
        pacer.record(2048, cost(2048))
    elif first == "short prompt":
        pacer.record(5, cost(5))
    for _ in range(8):
        pacer.record(0, cost(0))
    chunks = []
    for _ in range(60):
        chunks.append(pacer.most_rows())
        pacer.record(chunks[-1], cost(chunks[-1]) * noise.uniform(0.9, 1.1))
    wanted = ideal(cost)
    assert all(0.6 * wanted <= chunk <= 1.4 * wanted for chunk in chunks[10:])
    assert max(chunks[1:]) <= 1.5 * wanted


def test_before_anything_is_known_and_without_a_target() -> None:
    assert ChunkPacer(TARGET).most_rows() == FIRST_ROWS
    assert ChunkPacer(0.0).most_rows() == NO_BOUND
    slowest = ChunkPacer(TARGET)
    slowest.record(64, 1000.0)
    assert slowest.most_rows() == FEWEST_ROWS


def test_costs_rise_with_rows_whatever_was_measured() -> None:
    pacer, noise = ChunkPacer(TARGET), random.Random(2)
    for _ in range(300):
        pacer.record(noise.randint(1, 4000), noise.uniform(0.0, 1.0))
        costs = pacer.costs()
        assert costs == sorted(costs)
        assert [seconds for _, seconds in costs] == sorted(seconds for _, seconds in costs)
        assert FEWEST_ROWS <= pacer.most_rows() <= NO_BOUND


def test_a_hiccup_is_forgotten() -> None:
    pacer, cost = ChunkPacer(TARGET), MACHINES["steady"]
    pacer.record(64, 5.0)
    for _ in range(OUTDATED + 6):
        rows = pacer.most_rows()
        pacer.record(rows, cost(rows))
    assert pacer.most_rows() > 0.7 * TARGET / 0.0004


def test_a_text_that_grows_has_smaller_chunks() -> None:
    pacer, done, chunks = ChunkPacer(TARGET), 0, []
    while done < 16000:
        chunks.append(pacer.most_rows())
        pacer.record(chunks[-1], 0.002 + chunks[-1] * (0.0001 + done * 1e-7))
        done += chunks[-1]
    assert chunks[-1] < chunks[5] / 4
    assert 0.5 < chunks[-1] * (0.0001 + done * 1e-7) / TARGET < 1.6


def with_costs(engine: Engine, cost: Cost) -> list[int]:
    """Has every step cost what ``cost`` says of its prompt rows, whatever the clock says; returns their numbers."""
    pacer, rows = engine.scheduler.pacer, []
    honest = pacer.record

    def record(num_rows: int, seconds: float) -> None:
        rows.append(num_rows)
        honest(num_rows, cost(num_rows))

    pacer.record = record  # type: ignore[method-assign]
    return rows


def proportional(per_row: float, num_rows: int) -> float:
    return 0.01 + per_row * num_rows


SPECULATION: dict[str, Any] = {
    "off": None,
    "near": {"method": "draft_model", "model": "near", "num_speculative_tokens": 4},
    "tree": {"method": "random_tree", "model": "9"},
    "token": {"method": "draft_model", "model": "far", "num_speculative_tokens": 3, "verifier": "token"},
    "block": {"method": "draft_model", "model": "far", "num_speculative_tokens": 3, "verifier": "block"},
}
SAMPLED_ANEW = ("token", "block")
"""A draft may change these texts, so no chunk may change a draft."""


def jobs_of(engine: Engine) -> list[Group]:
    """A decoding call, then long prompts: to generate from, with log-probabilities, and to embed."""
    stream = begin(engine, random_prompt(1, 4, VOCAB), seeded(1, max_tokens=80, ignore_eos=True))
    for _ in range(2):
        engine.step()
    assert answers(stream)[0]
    long = begin(engine, random_prompt(2, 90, VOCAB), seeded(2, n=2, max_tokens=6))
    measured = begin(engine, random_prompt(3, 80, VOCAB), seeded(3, max_tokens=6, prompt_logprobs=1))
    embedded = begin(engine, random_prompt(4, 90, VOCAB), seeded(4), options=CallOptions(pooling="mean"))
    return [stream, long, measured, embedded]


@pytest.mark.parametrize("speculation", SPECULATION)
@pytest.mark.parametrize("per_row", [0.0003, 0.002, 0.05])
def test_chunks_show_in_no_token(per_row: float, speculation: str, llama: Models) -> None:
    plain = llama.engine(SPECULATION[speculation] if speculation in SAMPLED_ANEW else None, prefill_chunk_seconds=0)
    expected = jobs_of(plain)
    tokens = finish(plain, expected)
    for group, found in zip(expected, tokens, strict=True):
        for index, answer in enumerate(found):
            proposers.TRUTH[tuple(group.prompt_token_ids), index] = answer
    engine = llama.engine(SPECULATION[speculation], block_size=4)
    rows, noise = with_costs(engine, lambda rows: 0.01 + per_row * rows * noise.uniform(0.5, 2.0)), random.Random(3)
    groups = jobs_of(engine)
    assert finish(engine, groups) == tokens
    assert max(rows) < 200
    assert groups[2].prompt_logprobs is not None
    for one, other in zip(groups[2].prompt_logprobs, expected[2].prompt_logprobs or (), strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or one.logprob == pytest.approx(other.logprob, abs=1e-9)
    assert groups[3].pooled is not None
    assert expected[3].pooled is not None
    assert groups[3].pooled.embedding == pytest.approx(expected[3].pooled.embedding, abs=1e-9)
    assert_idle(engine)


@pytest.mark.parametrize("kind", ["generate", "embed"])
def test_nobody_who_decodes_waits_for_a_whole_prompt(kind: str, llama: Models) -> None:
    """Beside a stream, prompt rows cost no more than the target; the stream gets a token in every step."""
    engine = llama.engine()
    rows = with_costs(engine, lambda rows: 0.01 + 0.002 * rows)
    stream = begin(engine, random_prompt(1, 4, VOCAB), seeded(1, max_tokens=80, ignore_eos=True))
    for _ in range(9):
        engine.step()
    options = CallOptions(pooling="mean" if kind == "embed" else None)
    long = [begin(engine, random_prompt(n, 94, VOCAB), seeded(n, max_tokens=1), options=options) for n in range(4)]
    rows.clear()
    while not all(group.finished for group in long):
        before = len(answers(stream)[0])
        engine.step()
        assert len(answers(stream)[0]) == before + 1
    assert rows[0] == FIRST_ROWS
    assert max(rows[1:]) <= 30  # 25 rows take 0.05 s, and twice a prompt's last row counts as decoding
    finish(engine, [stream])


def test_alone_a_prompt_has_the_whole_budget_once_a_row_was_measured(llama: Models) -> None:
    engine = llama.engine(max_num_batched_tokens=80)
    rows = with_costs(engine, lambda rows: 0.001 * rows)
    finish(engine, [begin(engine, random_prompt(n, 95, VOCAB), seeded(n, max_tokens=1)) for n in range(3)])
    assert rows[:3] == [FIRST_ROWS, 80, 80]


@pytest.mark.parametrize("kind", ["generate", "n", "embed", "prompt logprobs"])
def test_alone_a_prompt_takes_a_second_a_step(kind: str, llama: Models) -> None:
    """On a machine that slow a client that leaves, and one that comes, is seen within it; the texts stay."""
    params = {"n": {"n": 3}, "prompt logprobs": {"prompt_logprobs": 1}}.get(kind, {})
    options = CallOptions(pooling="mean" if kind == "embed" else None)
    prompts = [random_prompt(n, 90, VOCAB) for n in range(3)]
    found = []
    for per_row in (0.0, 0.03):
        engine = llama.engine()
        rows = with_costs(engine, partial(proportional, per_row))
        groups = [begin(engine, one, seeded(5, max_tokens=4, **params), options=options) for one in prompts]
        found.append(finish(engine, groups))
        assert (max(rows[1:]) <= 32) == (per_row > 0)
        gone = begin(engine, random_prompt(9, 90, VOCAB), seeded(5), options=options)
        engine.step()
        assert per_row == 0 or gone.members[0].seat >= 0
        engine.abort(gone)
        assert_idle(engine)
    assert found[0] == found[1]


@pytest.mark.parametrize("machine", MACHINES)
def test_rows_alone_are_a_power_of_two_that_fits_a_second(machine: str) -> None:
    cost, pacer = MACHINES[machine], ChunkPacer(TARGET)
    assert pacer.most_rows(decoding=False) == FIRST_ROWS
    assert ChunkPacer(0.0).most_rows(decoding=False) == NO_BOUND
    for _ in range(12):
        rows = min(4096, pacer.most_rows(decoding=False))
        assert rows.bit_count() == 1
        pacer.record(rows, cost(rows))
    assert cost(rows) <= 1.1
    assert rows == 4096 or cost(4 * rows) > 1.0


def test_a_cache_that_forgets_has_whole_prompts(llama: Models) -> None:
    engine = llama.engine(cache="none")
    with_costs(engine, lambda rows: 1.0 * rows)
    finish(engine, jobs_of(engine))


def test_an_abort_is_seen_between_chunks(llama: Models) -> None:
    engine = llama.engine()
    with_costs(engine, lambda rows: 0.01 + 0.005 * rows)
    stream, long, *others = jobs_of(engine)
    engine.step()
    assert long.members[0].seat >= 0
    assert not answers(long)[0]
    for group in (long, *others):
        engine.abort(group)
    assert all(member.seat < 0 for member in long.members)
    finish(engine, [stream])
    assert_idle(engine)
