"""Plants bugs that broke losslessness elsewhere; the invariance checks must notice each of them.

A check that passes with the bug in place checks nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from paceline.cache import CacheManager, KVGroup
from paceline.core.batch import Batch, SampleRows
from paceline.core.params import SamplingParams
from paceline.core.step import DraftTrees
from paceline.engine import compute
from paceline.runner import Rows, batching, eager, rows
from paceline.sampling import SamplingState
from paceline.speculation.catch_up import DraftCache
from tests.invariance.test_matrix import OTHERS, PROMPT, check, plain
from tests.support import proposers
from tests.support.cases import Case
from tests.support.engines import Job, Models, cache_content, prompts, run

Plant = Callable[[pytest.MonkeyPatch], None]


def _assemble_with(monkeypatch: pytest.MonkeyPatch, change: Callable[..., Batch]) -> None:
    true = compute.verify_rows

    def changed(plan: Any, drafts: DraftTrees, *rest: Any) -> Rows:
        rows = true(plan, drafts, *rest)
        return Rows(change(rows.batch, drafts), rows.samples)

    monkeypatch.setattr(compute, "verify_rows", changed)


def _sample_with(monkeypatch: pytest.MonkeyPatch, change: Callable[[SampleRows, Any], SampleRows]) -> None:
    """``change(samples, seats)``"""
    true = compute.verify_rows

    def changed(plan: Any, drafts: DraftTrees, seats: Any, groups: Any) -> Rows:
        rows = true(plan, drafts, seats, groups)
        return Rows(rows.batch, change(rows.samples, seats))

    monkeypatch.setattr(compute, "verify_rows", changed)


def rejected_nodes_stay_where_accepted_ones_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KVGroup, "move", lambda *_: None)


def accepted_nodes_are_moved_one_slot_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    true = KVGroup.move
    monkeypatch.setattr(KVGroup, "move", lambda self, seats, source, target: true(self, seats, source, target + 1))


def penalties_miss_the_tokens_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    _sample_with(monkeypatch, lambda rows, _: replace(rows, path=np.full_like(rows.path, -1)))


def noise_does_not_advance_within_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(rows: SampleRows, seats: Any) -> SampleRows:
        known = seats.num_tokens[rows.seats] - seats.prompt_len[rows.seats]
        return replace(rows, output_index=known.astype(np.int64))

    _sample_with(monkeypatch, stuck)


def nodes_see_their_neighbours_ancestors(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(batch: Batch, drafts: DraftTrees) -> Batch:
        rows = np.flatnonzero(batch.tree_bits.any(axis=1))
        bits = batch.tree_bits.copy()
        own = bits[rows]
        bits[rows] = np.roll(own, 1, axis=0) | own
        return replace(batch, tree_bits=bits)

    _assemble_with(monkeypatch, shifted)


def nodes_stand_one_position_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(batch: Batch, drafts: DraftTrees) -> Batch:
        nodes = batch.positions >= batch.context[batch.row_request]
        return replace(batch, positions=batch.positions + nodes)

    _assemble_with(monkeypatch, shifted)


def the_sixty_fourth_node_is_lost_to_the_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    def masked(batch: Batch, drafts: DraftTrees) -> Batch:
        return replace(batch, tree_bits=batch.tree_bits & np.int64(2**63 - 1))

    _assemble_with(monkeypatch, masked)


def requests_read_their_neighbours_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    def rolled(batch: Batch, drafts: DraftTrees) -> Batch:
        return replace(batch, page_table=tuple(np.roll(table, 1, axis=0) for table in batch.page_table))

    _assemble_with(monkeypatch, rolled)


def forks_write_to_shared_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KVGroup, "_shared_pages", lambda *_: [])


@pytest.mark.parametrize(
    ("plant", "case"),
    [
        (rejected_nodes_stay_where_accepted_ones_belong, ("tree", 4, "alone", "page4", "seeded", 1)),
        (accepted_nodes_are_moved_one_slot_too_far, ("tree", 4, "alone", "page4", "seeded", 1)),
        (penalties_miss_the_tokens_of_the_step, ("near", 4, "alone", "page4", "greedy_penalties", 1)),
        (noise_does_not_advance_within_the_step, ("near", 4, "alone", "page4", "seeded", 1)),
        (nodes_stand_one_position_too_far, ("near", 4, "alone", "page4", "seeded", 1)),
        (nodes_stand_one_position_too_far, ("suffix", 4, "alone", "page4", "greedy", 1)),
        (accepted_nodes_are_moved_one_slot_too_far, ("token_recycling", 4, "mixed", "page4", "greedy", 1)),
        (rejected_nodes_stay_where_accepted_ones_belong, ("lookahead", 4, "alone", "page4", "greedy_penalties", 1)),
        (requests_read_their_neighbours_pages, ("off", 4, "mixed", "page4", "seeded", 1)),
        (forks_write_to_shared_pages, ("off", 4, "alone", "page16", "seeded", 3)),
    ],
    ids=lambda value: getattr(value, "__name__", None) and value.__name__,
)
def test_planted_bug_is_caught(
    plant: Plant, case: tuple[Any, ...], llama: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    speculation, depth, batch, cache, sampling, n = case
    whole = Case(speculation, depth, batch, 2048, cache, 0, sampling, n, "sdpa", "llama")
    check(whole, llama)
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check(whole, llama)


def many_prompts_are_unchanged(models: Models, method: str) -> None:
    """Several prompts together under trees that follow the truth as often as not."""
    jobs = [Job(prompt, SamplingParams(temperature=1.0, seed=3, max_tokens=24)) for prompt in prompts(9, 61, [20] * 8)]
    expected = run(models.engine(), jobs)
    proposers.TRUTH.update({(job.prompt, 0): tokens[0] for job, tokens in zip(jobs, expected, strict=True)})
    engine = models.engine({"method": method, "num_speculative_tokens": 5})
    assert run(engine, jobs) == expected
    assert engine.counters.num_accepted > 0


@pytest.mark.parametrize(
    ("plant", "method"),
    [
        (nodes_see_their_neighbours_ancestors, "random_tree"),
        (the_sixty_fourth_node_is_lost_to_the_sign, "late_truth"),
    ],
)
def test_a_wrong_tree_mask_is_caught(plant: Plant, method: str, llama: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    many_prompts_are_unchanged(llama, method)
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        many_prompts_are_unchanged(llama, method)


def test_noise_shared_across_samples_is_caught(llama: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    def samples_differ(tokens: list[list[int]]) -> None:
        assert len({tuple(sample) for sample in tokens}) == len(tokens)

    samples_differ(plain("llama", "seeded", 3))
    true = SamplingState.join

    def join(self: SamplingState, request: Any) -> None:
        true(self, request)
        self.sample_index[request.seat] = 0

    monkeypatch.setattr(SamplingState, "join", join)
    params = Case("off", 1, "alone", 2048, "page4", 0, "seeded", 3, "sdpa", "llama").params()
    with pytest.raises(AssertionError):
        samples_differ(run(llama.engine(), [Job(PROMPT, params)])[0])


def drafter_keeps_one_rejected_token(monkeypatch: pytest.MonkeyPatch) -> None:
    true = CacheManager.commit

    def commit(self: CacheManager, seats: Any, num_cached: Any, groups: Any) -> None:
        off = 1 if list(groups) == [1] else 0
        true(self, seats, num_cached + off, groups)

    monkeypatch.setattr(CacheManager, "commit", commit)


def drafter_forgets_the_token_after_its_last_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims the whole draft is cached although its last token was never forwarded."""
    true = DraftCache.note

    def note(self: DraftCache, plan: Any, active: Any, ends: Any) -> None:
        true(self, plan, active, ends + 1)

    monkeypatch.setattr(DraftCache, "note", note)


@pytest.mark.parametrize("plant", [drafter_keeps_one_rejected_token, drafter_forgets_the_token_after_its_last_draft])
def test_drafter_cache_bugs_are_caught(plant: Plant, llama: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """They never change a token, only how often drafts are right: the K/V comparison has to see them."""

    def compare() -> None:
        engine = llama.engine({"method": "draft_model", "model": "near", "num_speculative_tokens": 4}, block_size=4)
        run(engine, OTHERS, hook=lambda engine, _: cache_content(engine, llama.drafts["near"], 1))

    compare()
    plant(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError)):
        compare()


def test_the_target_and_the_drafter_are_laid_out_by_one_rule() -> None:
    """The plants above replace the engine's name for the target's rows only."""
    assert batching.place is eager.place is rows.place
