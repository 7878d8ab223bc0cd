"""Steps of several passes and rounds beside what limits them: windows, a drafter's context, few pages, faults."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from paceline.core.call import CallOptions
from paceline.core.params import SamplingParams
from paceline.engine.engine import Engine
from paceline.engine.input_processor import InputProcessor
from paceline.kernels.native.step_structures import Cells
from paceline.models import load_model
from paceline.runner.executor import GraphResult, GraphStart
from paceline.runner.native import graph_builder
from paceline.runner.native.graph import NativeGraph
from tests.invariance.test_run_ahead import ahead, picked
from tests.support import proposers as _proposers  # noqa: F401 (registers them)
from tests.support.checkpoints import edit_json, perturb
from tests.support.engines import Job, Models, drive, one_by_one, prompts, run
from tests.support.native import needs_library, same_bits
from tests.support.zoo import tiny

pytestmark = needs_library

PROMPTS = prompts(3, 61, [7, 19, 3])
GREEDY = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
JOBS = [Job(prompt, GREEDY) for prompt in PROMPTS]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rounds each call asked for."""
    found: list[int] = []
    compute = NativeGraph.replay

    def counted(self: NativeGraph, start: GraphStart, num_rounds: int) -> GraphResult:
        if num_rounds > 1:
            found.append(num_rounds)
        return compute(self, start, num_rounds)

    monkeypatch.setattr(NativeGraph, "replay", counted)
    return found


def models(directory: Any, family: str = "llama", **of_draft: Any) -> Models:
    """A target, and a drafter that is sometimes right."""
    tiny(directory / "target", family)
    perturb(directory / "target", directory / "near", 0.1)
    edit_json(directory / "near" / "config.json", **of_draft)
    target, near = (load_model(directory / part) for part in ("target", "near"))
    return Models(target, {"near": near})


def same_counters(engine: Engine, other: Engine) -> bool:
    return replace(engine.counters, num_steps=0, step_tokens=[]) == replace(other.counters, num_steps=0, step_tokens=[])


@pytest.mark.parametrize("block_size", [1, 4])
def test_a_drafter_with_a_window_caches_what_it_does_in_single_rounds(
    block_size: int, tmp_path: Any, made: list[int]
) -> None:
    """The last token but one is computed again, though a page that it sees may have left the window of the next."""
    both = models(tmp_path, "mistral")
    expected, found = Drafted(), Drafted()
    answers = run(one_by_one(ahead(both, 1, "near", 3, block_size=block_size)), JOBS, hook=expected.note)
    assert run(ahead(both, 3, "near", 3, block_size=block_size), JOBS, hook=found.note) == answers
    common = expected.kv.keys() & found.kv.keys()
    assert len(common) > 30
    assert all(same_bits(expected.kv[key], found.kv[key]) for key in common)
    assert made or block_size == 1


class Drafted:
    """K and V of what drafters cached last, by prompt and slot, in all layers."""

    def __init__(self) -> None:
        self.kv: dict[tuple[tuple[int, ...], int], torch.Tensor] = {}

    def note(self, engine: Engine, _: int) -> None:
        group = engine.proposer.cache.groups[0]
        for request in engine.scheduler.running:
            count = int(group.num_cached[request.seat])
            for slot in range(max(count - 4, 0), count):
                cells = torch.from_numpy(group.cells(np.array([request.seat]), np.array([slot], dtype=np.int32)))
                parts = [part for layer in range(2) for part in picked(group, layer, cells)]
                self.kv[tuple(request.prompt_token_ids), slot] = torch.stack(parts)


def test_rounds_end_before_the_context_of_the_drafter_does(tmp_path: Any, made: list[int]) -> None:
    both = models(tmp_path, max_position_embeddings=40)
    plain = one_by_one(ahead(both, 1, "near", 3))
    expected = run(plain, JOBS)
    engine = ahead(both, 4, "near", 3)
    assert run(engine, JOBS) == expected
    assert same_counters(engine, plain)
    assert made
    assert engine.proposer is not None
    assert not engine.proposer.counters.num_failures


def test_pages_are_reserved_ahead_for_all_or_none(tmp_path: Any) -> None:
    cache = ahead(models(tmp_path), 1, "near", 3, num_blocks=32, block_size=4).cache
    groups, seats = [0, 1], np.array([0, 1, 2], dtype=np.int32)
    assert cache.reserve_all(seats, np.array([4, 4, 8], dtype=np.int32), groups)
    before = cache.counts()
    assert before.referenced == 2 * (1 + 1 + 2)
    assert not cache.reserve_all(seats, np.array([60, 60, 60], dtype=np.int32), groups)
    assert cache.counts() == before
    cache.check()


def test_a_drafter_whose_rounds_raise_starts_over(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    both = models(tmp_path)
    expected = run(one_by_one(ahead(both, 1)), JOBS)
    compute, raised = NativeGraph.replay, []

    def broken_once(self: NativeGraph, start: GraphStart, num_rounds: int) -> Any:
        if not raised and num_rounds > 1:
            raised.append(True)
            raise MemoryError("broken")
        return compute(self, start, num_rounds)

    monkeypatch.setattr(NativeGraph, "replay", broken_once)
    engine = ahead(both, 3, "near", 3)
    held = []
    groups = engine.cache.groups

    def hook(engine: Engine, _: int) -> None:
        for request in engine.scheduler.running:
            for group in groups:
                held.append(group.num_cached[request.seat] <= group.num_pages[request.seat] * group.page_size)

    assert run(engine, JOBS, hook=hook) == expected
    assert raised
    assert all(held)


def grown(both: Models, steps: int, **options: Any) -> Engine:
    drafting = {"method": "model_tree", "model": "near", "num_speculative_tokens": 3}
    return both.engine(drafting, model_impl="native", num_scheduler_steps=steps, **options)


@pytest.mark.parametrize("block_size", [1, 4])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_trees_that_a_model_grows_in_a_call_are_those_of_passes(
    family: str, block_size: int, tmp_path: Any, made: list[int]
) -> None:
    """Texts, drafts and what stands of them; several rounds to a call, K/V of accepted nodes moved in it."""
    both = models(tmp_path, family)
    jobs = [*JOBS, Job(PROMPTS[0], SamplingParams(temperature=0.8, seed=4, max_tokens=50))]
    expected = run(one_by_one(ahead(both, 1)), jobs)
    eager = one_by_one(grown(both, 1, block_size=block_size))
    assert run(eager, jobs) == expected
    engine = grown(both, 4, block_size=block_size)
    assert run(engine, jobs) == expected
    assert same_counters(engine, eager)
    assert engine.counters.num_accepted > 20
    assert made


def test_trees_whose_nodes_stay_where_they_were_drafted_are_noticed(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = models(tmp_path)
    expected = run(one_by_one(ahead(both, 1)), JOBS)
    assert run(grown(both, 4), JOBS) == expected
    monkeypatch.setattr(graph_builder, "pools_of", lambda *_: (Cells * 0)())
    assert run(grown(both, 4), JOBS) != expected


class UnequalDepths:
    """Drafts of every depth side by side, also of none; another depth each time a request is asked for."""

    def __init__(self, max_depth: int) -> None:
        self.max_depth, self._calls = max_depth, 0

    def depths(self, seats: Any, room: Any) -> Any:
        self._calls += 1
        return np.minimum(room, (seats + self._calls // 3) % (self.max_depth + 1)).astype(np.int32)


@pytest.mark.parametrize("method", ["draft_model", "model_tree"])
def test_each_request_may_be_drafted_for_to_another_depth(method: str, tmp_path: Any, made: list[int]) -> None:
    """The texts are the same, and the drafter's cache has no holes where it was not asked for a while."""
    both = models(tmp_path)
    expected = run(one_by_one(ahead(both, 1)), JOBS)
    drafting = {"method": method, "model": "near", "num_speculative_tokens": 3}
    always, unequal = Drafted(), Drafted()
    run(one_by_one(both.engine(drafting, model_impl="native", num_scheduler_steps=1)), JOBS, hook=always.note)
    engine = both.engine(drafting, model_impl="native", num_scheduler_steps=3)
    engine.scheduler.draft_policy = UnequalDepths(3)
    assert run(engine, JOBS, hook=unequal.note) == expected
    common = always.kv.keys() & unequal.kv.keys()
    assert len(common) > 30
    assert all(same_bits(always.kv[key], unequal.kv[key]) for key in common)
    assert made
    assert engine.counters.num_accepted > 20


def test_a_call_that_is_not_drafted_for_runs_beside_others_in_rounds(tmp_path: Any, made: list[int]) -> None:
    both = models(tmp_path)
    expected = run(one_by_one(ahead(both, 1)), JOBS)
    engine = ahead(both, 3, "near", 3)
    processor = InputProcessor(engine, None)
    groups = [
        processor.group(list(job.prompt), job.params, options=CallOptions(speculate=number != 1))
        for number, job in enumerate(JOBS)
    ]
    for group in groups:
        engine.add(group)
    drive(engine, groups)
    assert [[member.output_token_ids for member in group.members] for group in groups] == expected
    assert groups[1].members[0].num_drafted == 0 < groups[0].members[0].num_accepted
    assert made


def test_an_engine_told_to_computes_every_step_pass_by_pass(tmp_path: Any) -> None:
    both = models(tmp_path)
    engine, other = ahead(both, 3, "near", 3, enforce_eager=True), ahead(both, 3, "near", 3)
    assert run(engine, JOBS) == run(other, JOBS)
    assert set(engine.computation.eager_steps) == {"enforce_eager"}
    assert engine.computation.eager_steps["enforce_eager"] == engine.counters.num_steps
    assert not engine.computation.graphs.num_captured
    assert other.computation.graphs.num_captured
