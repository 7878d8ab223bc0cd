"""Passes that follow one another in one native call give the tokens and cache the bits of passes called one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from paceline.core.params import SamplingParams
from paceline.engine.engine import Engine
from paceline.kernels.native.structures import address
from paceline.runner.executor import GraphResult, GraphStart
from paceline.runner.model_runner import layers_by_lifetime
from paceline.runner.native.graph import NativeGraph
from paceline.runner.native.graph_builder import NativeBuilder
from paceline.runner.native.prepared_rows import PreparedRows
from tests.invariance.known import EVERYTHING, JOBS, Known
from tests.invariance.test_matrix import PROMPT
from tests.support.cases import CACHES, SAMPLING, SPECULATION
from tests.support.engines import Job, Models, one_by_one, preempt_every, prompts, run
from tests.support.native import needs_library, on_threads, same_bits

pytestmark = needs_library

PROMPTS = prompts(3, 61, [7, 19, 3])
GREEDY = SamplingParams(temperature=0.0, max_tokens=23, ignore_eos=True)
CHAINED = {name: controls for name, controls in SAMPLING.items() if name in ("greedy", "seeded", "top_k_top_p")}
"""Controls that look at nothing but a row's scores."""


class Replay(NamedTuple):
    """One native call of a step."""

    depth: int
    """Levels that the call itself drafts."""
    asked: int
    """Rounds that it may have."""
    made: int


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[Replay]:
    """The native calls of all steps."""
    found: list[Replay] = []
    compute = NativeGraph.replay

    def counted(self: NativeGraph, start: GraphStart, num_rounds: int) -> GraphResult:
        result = compute(self, start, num_rounds)
        drafts = start.drafts is None and self.sizes.length
        found.append(Replay(int(start.depth.max()) if drafts else 0, num_rounds, len(result.counts)))
        return result

    monkeypatch.setattr(NativeGraph, "replay", counted)
    return found


def plain_rounds(replays: list[Replay]) -> list[int]:
    return [replay.asked for replay in replays if not replay.depth]


def draft_rounds(replays: list[Replay]) -> list[int]:
    """Of calls that draft more than once."""
    return [replay.asked for replay in replays if replay.depth and replay.asked > 1]


def ahead(models: Models, steps: int, speculation: str = "off", depth: int = 4, **options: Any) -> Engine:
    config = SPECULATION[speculation]
    drafting = None if config is None else {**config, "num_speculative_tokens": depth}
    return models.engine(drafting, model_impl="native", num_scheduler_steps=steps, **options)


WAYS: dict[str, tuple[int, str, dict[str, Any], int, int]] = {
    "one pass": (1, "off", CACHES["page4"], 0, 1),
    "five": (5, "off", CACHES["page4"], 0, 1),
    "nine, pages of one, preempted, chunks": (9, "off", {**CACHES["page1"], "max_num_batched_tokens": 16}, 4, 1),
    "three, two threads": (3, "off", CACHES["static"], 0, 2),
    "drafts": (5, "near", CACHES["page4"], 0, 1),
    "drafts, three rounds, pages of one": (3, "near", CACHES["page1"], 0, 1),
    "drafts, two threads, preempted": (5, "near", CACHES["page16"], 3, 2),
    "trees": (2, "tree", CACHES["page4"], 0, 1),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("family", "kind"), EVERYTHING)
def test_no_token_tells(family: str, kind: str, way: str, known: Any) -> None:
    models: Known = known(family, kind)
    models.tell()
    steps, speculation, options, preempt, threads = WAYS[way]
    engine = ahead(models.models, steps, speculation, **options)
    with on_threads(threads):
        assert run(engine, JOBS, hook=preempt_every(preempt) if preempt else None) == models.expected


@pytest.mark.parametrize("speculation", ["off", "near"])
@pytest.mark.parametrize(("family", "kind"), EVERYTHING)
def test_the_same_bits_are_cached(family: str, kind: str, speculation: str, known: Any, replays: list[Replay]) -> None:
    models = known(family, kind).models
    controls = [{"temperature": 0.0}, {"temperature": 0.9, "seed": 5, "top_p": 0.9}, {"temperature": 2.0, "seed": 6}]
    params = [SamplingParams(max_tokens=50, ignore_eos=True, **chosen) for chosen in controls]
    jobs = list(map(Job, PROMPTS, params))
    expected: dict[tuple[Any, int], list[torch.Tensor]] = {}
    answers = run(one_by_one(ahead(models, 1)), jobs, hook=lambda engine, _: expected.update(cached(engine)))
    found: dict[tuple[Any, int], list[torch.Tensor]] = {}
    engine = ahead(models, 6, speculation, 3)
    assert run(engine, jobs, hook=lambda engine, _: found.update(cached(engine))) == answers
    assert len(found) >= 3 * len(jobs)
    for key, tensors in found.items():
        assert all(same_bits(*pair) for pair in zip(tensors, expected[key], strict=True)), key[1]
    # A soft cap of logits is torch's.
    assert (max(plain_rounds(replays), default=0) == 6) == (speculation == "off" and family != "gemma2")
    assert bool(draft_rounds(replays)) == (speculation == "near" and family != "gemma2")


def cached(engine: Engine) -> dict[tuple[Any, int], list[torch.Tensor]]:
    """(prompt, number of cached tokens) -> K and V of the last eight of them, by layer, of all that run."""
    found = {}
    for request in engine.scheduler.running:
        tensors = []
        specs = layers_by_lifetime(engine.runner.model.layer_specs)
        for group, layers in zip(engine.runner.groups, specs.values(), strict=True):
            count = int(group.num_cached[request.seat])
            slots = np.arange(max(count - 8, 0), count, dtype=np.int32)
            cells = torch.from_numpy(group.cells(np.full(len(slots), request.seat), slots))
            for layer in range(len(layers)):
                tensors += [part.clone() for part in picked(group, layer, cells)]
        found[tuple(request.prompt_token_ids), count] = tensors
    return found


def picked(group: Any, layer: int, cells: torch.Tensor) -> list[torch.Tensor]:
    pages, places = cells // group.page_size, cells % group.page_size
    return [part[pages, :, places] for part in group.store.pools(layer)]


@pytest.mark.parametrize("controls", SAMPLING)
@pytest.mark.parametrize("speculation", ["off", "near"])
def test_controls(speculation: str, controls: str, known: Any, replays: list[Replay]) -> None:
    models = known("llama", "fp32").models
    params = SamplingParams(**SAMPLING[controls], max_tokens=21, n=2)
    jobs = [Job(PROMPT, params), Job(PROMPTS[0], GREEDY)]
    expected = run(one_by_one(ahead(models, 1)), jobs)
    replays.clear()
    engine = ahead(models, 7, speculation)
    assert run(engine, jobs) == expected
    if controls in CHAINED:
        assert max(plain_rounds(replays) if speculation == "off" else draft_rounds(replays)) >= (
            7 if speculation == "off" else 2
        )


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_drafts_are_those_of_passes_called_one_by_one(steps: int, known: Any, replays: list[Replay]) -> None:
    """Also where requests may draft more or less, since their ends are near; and drafts end where texts do."""
    models = known("llama", "fp32").models
    stop = run(ahead(models, 1), [Job(PROMPTS[1], GREEDY)])[0][0][9]
    seeded = SamplingParams(temperature=0.7, seed=3, max_tokens=70, stop_token_ids=[stop])
    lengths = [SamplingParams(temperature=0.0, max_tokens=length) for length in (9, 10, 11)]
    jobs = [Job(PROMPT, seeded), *map(Job, PROMPTS, lengths)]
    jobs += [Job(prompts(4, 61, [6])[0], replace(GREEDY, max_tokens=80))]
    counters = []
    for engine in (ahead(models, steps, "near", 5), one_by_one(ahead(models, 1, "near", 5))):
        found = run(engine, jobs)
        counters.append((found, replace(engine.counters, num_steps=0, step_tokens=[])))
    assert counters[0] == counters[1]
    assert counters[0][1].num_accepted > 10
    assert {replay.depth for replay in replays} >= {1, 3, 5} or steps > 1
    assert bool(draft_rounds(replays)) == (steps > 1)


def test_rounds_go_on_with_full_drafts_and_without_any(known: Any, replays: list[Replay]) -> None:
    """A drafter that is always right, and one that hardly is, batches that shrink, and prompts of a single token."""
    models = known("qwen3", "bf16").models
    jobs = [
        Job(p, replace(GREEDY, max_tokens=n, temperature=t, seed=n))
        for p, n, t in ((PROMPTS[0], 60, 0.0), ((5,), 33, 0.0), (PROMPTS[2], 47, 3.0))
    ]
    expected = run(one_by_one(ahead(models, 1)), jobs)
    for draft in ("near", "target"):
        both = Models(models.target, {"near": models.drafts["near"] if draft == "near" else models.target})
        for depth in (1, 2, 7):
            engine = ahead(both, 4, "near", depth)
            assert run(engine, jobs) == expected
            assert max((replay.made for replay in replays if replay.depth), default=0) == (3 if depth == 7 else 4)
            assert draft == "near" or engine.counters.num_accepted > 0.9 * engine.counters.num_drafted
            replays.clear()


def test_a_text_ends_where_it_ends_within_a_step(known: Any, replays: list[Replay]) -> None:
    models = known("qwen3", "bf16").models
    whole = run(ahead(models, 1), [Job(PROMPT, GREEDY)])[0][0]
    for place in range(3, 13):
        first = whole.index(whole[place])
        params = SamplingParams(temperature=0.0, max_tokens=23, stop_token_ids=[whole[place]], min_tokens=3)
        engine = ahead(models, 6)
        (answer,) = run(engine, [Job(PROMPT, params)])
        plain = run(one_by_one(ahead(models, 1)), [Job(PROMPT, params)])
        assert [answer] == plain
        assert first < 3 or len(answer[0]) == first + 1
        long = [Job(PROMPT, replace(params, max_tokens=60, min_tokens=0))]
        assert run(ahead(models, 6, "near"), long) == run(one_by_one(ahead(models, 1)), long)
    assert 1 in plain_rounds(replays)
    assert any(replay.made < replay.asked for replay in replays if replay.depth)


@pytest.mark.parametrize("speculation", ["off", "near"])
@pytest.mark.parametrize("num_blocks", [26, 32, 44])
def test_too_few_pages(num_blocks: int, speculation: str, known: Any) -> None:
    models = known("llama", "int8").models
    jobs = [Job(prompt, SamplingParams(temperature=1.0, seed=n, max_tokens=25)) for n, prompt in enumerate(PROMPTS)]
    expected = run(one_by_one(ahead(models, 1)), jobs)
    engine = ahead(models, 8, speculation, num_blocks=num_blocks, block_size=4, enable_prefix_caching=False)
    assert run(engine, jobs) == expected


@pytest.mark.parametrize("speculation", ["off", "near"])
def test_a_row_of_nan_ends_where_it_would_have(speculation: str, tmp_path: Any, known: Any) -> None:
    """A token whose embedding is NaN, met by the target and by its drafter in the middle of a chain."""
    models = Known(tmp_path, "llama", "fp32").models
    healthy = run(ahead(models, 1), [Job(PROMPT, GREEDY)])[0][0]
    bad = next(token for place, token in enumerate(healthy) if place > 4 and token not in (*healthy[:place], *PROMPT))
    with torch.no_grad():
        for model in (models.target, models.drafts["near"]):
            model.embedding.tokens.weight[bad] = torch.nan
    jobs = [Job(PROMPT, GREEDY), Job(PROMPTS[0], GREEDY)]
    expected = run(one_by_one(ahead(models, 1, speculation)), jobs)
    assert expected[0][0] == healthy[: healthy.index(bad) + 1]
    engine = ahead(models, 6, speculation)
    assert run(engine, jobs) == expected
    assert engine.counters.finished["error"] >= 1
    for group in engine.cache.groups:
        pages = torch.arange(1, group.pages.num_pages + 1)
        assert all(bool(cells.isfinite().all()) for cells in group.store.read(0, pages))


def test_passes_are_counted_one_by_one(known: Any) -> None:
    models = known("llama", "fp32").models
    engine = ahead(models, 4)
    job = Job(PROMPT, SamplingParams(temperature=0.0, max_tokens=17, ignore_eos=True))
    assert len(run(engine, [job])[0][0]) == 17
    assert engine.counters.num_steps == 5
    assert engine.counters.num_drafted == engine.counters.num_accepted == 0


def _prepared(monkeypatch: pytest.MonkeyPatch, change: Callable[[PreparedRows, Any], None]) -> None:
    """Has ``change`` the op that lays out rows."""
    make = PreparedRows._structure

    def changed(self: PreparedRows, width: int) -> Any:
        struct = make(self, width)
        change(self, struct)
        return struct

    monkeypatch.setattr(PreparedRows, "_structure", changed)


def forget_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every round decides the output token that the first one does."""

    def stuck(_: PreparedRows, struct: Any) -> None:
        struct.first_index = address(ZEROS)

    _prepared(monkeypatch, stuck)


def _accepting(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    """Has fields of the op that ends a round point elsewhere."""
    accept = NativeBuilder.accept

    def changed(self: NativeBuilder, samples: Any) -> None:
        accept(self, samples)
        number = self.ops["Accept"][-1]
        for name, array in fields.items():
            setattr(self._recorder._steps[number][1], name, address(array))

    monkeypatch.setattr(NativeBuilder, "accept", changed)


def stay_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are laid out by what was known before the first round."""
    load, frozen = NativeGraph._load, np.zeros(64, dtype=np.int32)

    def loaded(self: NativeGraph, start: GraphStart, number: int) -> None:
        load(self, start, number)
        frozen[:number] = start.context

    monkeypatch.setattr(NativeGraph, "_load", loaded)
    _prepared(monkeypatch, lambda _, struct: setattr(struct, "context", address(frozen)))


def write_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accepted tokens are not where the next round looks for them."""
    _accepting(monkeypatch, tokens=ELSEWHERE)


ZEROS, ELSEWHERE = np.zeros(64, dtype=np.int64), np.zeros(2**20, dtype=np.int32)


@pytest.mark.parametrize("bug", [forget_depth, stay_in_place, write_elsewhere])
def test_these_tests_see_a_planted_bug(bug: Any, known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    models = known("llama", "fp32").models
    jobs = [Job(PROMPT, SamplingParams(temperature=1.0, seed=8, max_tokens=25, ignore_eos=True))]
    expected = run(one_by_one(ahead(models, 1)), jobs)
    bug(monkeypatch)
    assert run(ahead(models, 6), jobs) != expected


def count_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    _prepared(monkeypatch, lambda rows, struct: rows.verifies and setattr(struct, "first_index", address(ZEROS)))


def lie_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """K/V of the target's rows go to cells that others read."""

    def halved(rows: PreparedRows, _: Any) -> None:
        if rows.verifies:
            rows._structs[0].page_size //= 2

    _prepared(monkeypatch, halved)


def forget_what_came_last(monkeypatch: pytest.MonkeyPatch) -> None:
    write_elsewhere(monkeypatch)


@pytest.mark.parametrize("bug", [count_wrongly, lie_elsewhere, forget_what_came_last])
def test_these_tests_see_a_bug_planted_in_rounds(bug: Any, known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    models = known("llama", "fp32").models
    jobs = [Job(PROMPT, SamplingParams(temperature=1.0, seed=8, max_tokens=45, ignore_eos=True))]
    expected = run(one_by_one(ahead(models, 1)), jobs)
    assert run(ahead(models, 6, "near"), jobs) == expected
    bug(monkeypatch)
    assert run(ahead(models, 6, "near"), jobs) != expected


def test_rounds_that_raise_are_steps_that_go_on(known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    models = known("llama", "fp32").models
    jobs = [Job(PROMPT, GREEDY)]
    expected = run(one_by_one(ahead(models, 1)), jobs)

    def broken(*_: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(NativeGraph, "replay", broken)
    engine = ahead(models, 4, "near")
    assert run(engine, jobs) == expected
    assert engine.proposer is not None
    assert engine.proposer.counters.num_failures > 0


@pytest.mark.parametrize("part", ["draft pages", "target pages", "context", "tokens"])
def test_rounds_outside_of_what_there_is_are_refused(part: str, known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    models = known("llama", "fp32").models
    expected = run(one_by_one(ahead(models, 1)), [Job(PROMPT, GREEDY)])
    compute, refused = NativeGraph.replay, []
    engine = ahead(models, 6, "near")

    def wild(self: NativeGraph, start: GraphStart, num_rounds: int) -> Any:
        with spoiled(engine, part, start) as changed, pytest.raises(IndexError):
            compute(self, changed, num_rounds)
        refused.append(part)
        return compute(self, start, num_rounds)

    monkeypatch.setattr(NativeGraph, "replay", wild)
    assert run(engine, [Job(PROMPT, GREEDY)]) == expected
    assert refused


@contextmanager
def spoiled(engine: Engine, part: str, start: GraphStart) -> Iterator[GraphStart]:
    """Something that is outside of what there is."""
    if part == "context":
        yield replace(start, context=start.context + np.int32(2**20))
        return
    group = engine.cache.groups[1 if part == "draft pages" else 0]
    array = engine.seats.tokens if part == "tokens" else group.page_table
    before = array.copy()
    array[start.seats] = 2**20
    yield start
    array[:] = before


@pytest.mark.parametrize("part", ["pages", "context", "tokens"])
def test_what_lies_outside_is_refused(part: str, known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine takes it for a step that failed, repeats that without a graph, and the text is whole."""
    models = known("llama", "fp32").models
    expected = run(one_by_one(ahead(models, 1)), [Job(PROMPT, GREEDY)])
    compute, raised = NativeGraph.replay, []
    engine = ahead(models, 6)

    def wild(self: NativeGraph, start: GraphStart, num_rounds: int) -> Any:
        if num_rounds == 1:
            return compute(self, start, num_rounds)
        raised.append(part)
        with spoiled(engine, part, start) as changed:
            try:
                return compute(self, changed, num_rounds)
            except IndexError as error:
                caught = error
        raise caught

    monkeypatch.setattr(NativeGraph, "replay", wild)
    assert run(engine, [Job(PROMPT, GREEDY)]) == expected
    assert raised
