"""Token recycling: the shape of its trees, what its table keeps, and salts that share nothing."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from paceline.core.batch import Verdict
from paceline.core.config import SpeculativeConfig
from paceline.core.errors import ConfigError
from paceline.core.step import StepPlan
from paceline.speculation import TokenRecyclingProposer
from paceline.speculation.token_recycling import (
    FIRST_RANK,
    MAX_TABLES,
    NEXT_RANK,
    SuccessorTable,
    tree_shape,
)
from tests.invariance.conftest import llama  # noqa: F401 - a fixture
from tests.speculation.salts import PARAMS, PROMPT, drafts_of, salts_share_nothing
from tests.support.engines import Job, Models, preempt_every, run

RECYCLING = {"method": "token_recycling", "num_speculative_tokens": 4, "token_recycling_nodes": 16}


def paths_of(parents: list[int], ranks: list[int]) -> list[tuple[int, ...]]:
    paths: list[tuple[int, ...]] = []
    for parent, rank in zip(parents, ranks, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), rank))
    return paths


@pytest.mark.parametrize(("nodes", "depth", "ranks"), [(1, 1, 1), (8, 4, 8), (80, 6, 8), (20, 2, 3), (64, 1, 5)])
def test_the_tree_holds_the_likeliest_paths_level_by_level(nodes: int, depth: int, ranks: int) -> None:
    shape = tree_shape(nodes, depth, ranks)
    paths = paths_of(shape.parents.tolist(), shape.ranks.tolist())
    every = [path for length in range(1, depth + 1) for path in itertools.product(range(ranks), repeat=length)]
    worth = {path: FIRST_RANK ** len(path) * NEXT_RANK ** sum(path) for path in every}
    likeliest = sorted(worth.values(), reverse=True)[:nodes]
    assert sorted((worth[path] for path in paths), reverse=True) == pytest.approx(likeliest)
    assert len(set(paths)) == len(paths) == min(nodes, len(every))
    for length, level in enumerate(shape.levels, 1):
        assert {len(path) for path in paths[level]} == {length}


def test_a_tree_is_read_off_the_table_and_lacks_what_that_does_not_know() -> None:
    table = SuccessorTable(10, 3)
    table.learn(np.array([1, 2, 1], dtype=np.int32), np.array([[9, 9, 9], [4, 5, -1], [2, 3, 6]], dtype=np.int32))
    tokens, parents = table.expand(1, tree_shape(12, 2, 3))
    found = {(token, -1 if parent < 0 else int(tokens[parent])) for token, parent in zip(tokens, parents, strict=True)}
    assert found == {(2, -1), (3, -1), (6, -1), (4, 2), (5, 2)}  # the last row of token 1 stands; 3 and 6 are unknown
    assert len(table.expand(7, tree_shape(12, 2, 3))[0]) == 0
    for follower in (8, 2, 8, 3):
        table.note(1, follower)
    assert table.successors[1].tolist() == [3, 8, 2]


def proposer_of(models: Models, **options: Any) -> tuple[Any, TokenRecyclingProposer]:
    engine = models.engine({**RECYCLING, **options})
    inner = engine.proposer.inner
    assert isinstance(inner, TokenRecyclingProposer)
    return engine, inner


def test_every_row_that_was_verified_is_learned_from(llama: Models) -> None:  # noqa: F811
    """The rows of nodes that were not accepted as well: their likeliest tokens are filed behind their own tokens."""
    engine, inner = proposer_of(llama)
    true, checked = inner.observe, [0]

    def observe(plan: StepPlan, verdict: Verdict) -> None:
        drafts, before = inner._drafts, inner._last(plan)
        width = 0 if drafts is None else drafts.width
        best = np.full((len(plan), width + 1, inner.num_ranks), -1, dtype=np.int32)
        for number in range(len(plan)):
            count = 0 if drafts is None else int(drafts.counts[number])
            best[number, : count + 1] = np.arange(inner.num_ranks) + number
        true(plan, Verdict(verdict.tokens, verdict.path, verdict.rows, verdict.dead_ends, best=best))
        for number in range(len(plan)):
            tokens = [int(before[number])]
            tokens += [] if drafts is None else drafts.tokens[number, : drafts.counts[number]].tolist()
            if number == len(plan) - 1 and verdict.tokens[number]:
                assert (inner.tables[""].successors[tokens] == np.arange(inner.num_ranks) + number).all()
                checked[0] += len(tokens)

    inner.observe = observe
    run(engine, [Job(PROMPT, PARAMS), Job(PROMPT[:3], PARAMS)])
    assert checked[0] > 40


def test_drafts_come_of_answers_of_the_same_salt_alone(llama: Models) -> None:  # noqa: F811
    salts_share_nothing(llama, RECYCLING)


def test_one_table_for_all_salts_is_caught(llama: Models, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    true = TokenRecyclingProposer._table

    def shared(self: TokenRecyclingProposer, request: Any) -> SuccessorTable:
        found = next(iter(self.tables.values()), None)
        return true(self, request) if found is None else found

    monkeypatch.setattr(TokenRecyclingProposer, "_table", shared)
    with pytest.raises(AssertionError):
        salts_share_nothing(llama, RECYCLING)


def test_only_so_many_salts_keep_a_table(llama: Models) -> None:  # noqa: F811
    salts = [str(number) for number in range(MAX_TABLES + 2)]
    first, *_, kept, dropped = drafts_of(llama, RECYCLING, [*salts, salts[-1], salts[0]])
    assert first == dropped
    assert first != kept


def test_text_is_the_same_preempted_or_not_and_drafts_are_right_now_and_then(llama: Models) -> None:  # noqa: F811
    jobs = [Job(PROMPT, PARAMS), Job(PROMPT[:4], PARAMS)]
    engine, _ = proposer_of(llama)
    assert run(engine, jobs, hook=preempt_every(3)) == run(llama.engine(), jobs)
    run(engine, jobs)
    assert 0 < engine.counters.num_accepted < engine.counters.num_drafted


@pytest.mark.parametrize("verifier", ["token", "block", "tree", "traversal"])
def test_verifiers_whose_texts_hang_on_drafts_are_refused(verifier: str, llama: Models) -> None:  # noqa: F811
    """The table is everybody's, so that a seed would not repeat its text."""
    with pytest.raises(ConfigError, match=r"token_recycling drafts from what other calls.*\n.*to match"):
        llama.engine({**RECYCLING, "verifier": verifier})


@pytest.mark.parametrize(("name", "value"), [("token_recycling_nodes", 0), ("token_recycling_successors", 65)])
def test_options_out_of_range_are_named(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=name):
        SpeculativeConfig.of({"method": "token_recycling", name: value})


def test_more_successors_than_tokens_are_as_many_as_there_are(llama: Models) -> None:  # noqa: F811
    _, inner = proposer_of(llama, token_recycling_successors=64)
    assert inner.num_ranks == 61
