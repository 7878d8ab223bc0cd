"""Passes that follow one another in one native call give the tokens and cache the bits of passes called one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from paceline.core.params import SamplingParams
from paceline.engine.engine import Engine
from paceline.runner import model_runner
from paceline.runner.model_runner import layers_by_lifetime
from paceline.runner.native.chain import Chain
from tests.invariance.cases import CACHES, SAMPLING, SPECULATION
from tests.invariance.engines import Job, Models, one_by_one, preempt_every, prompts, run
from tests.invariance.known import EVERYTHING, JOBS, Known
from tests.invariance.test_matrix import PROMPT
from tests.kernels.native import needs_library, on_threads, same_bits

pytestmark = needs_library

PROMPTS = prompts(3, 61, [7, 19, 3])
GREEDY = SamplingParams(temperature=0.0, max_tokens=23, ignore_eos=True)
CHAINED = {name: controls for name, controls in SAMPLING.items() if name in ("greedy", "seeded", "top_k_top_p")}
"""Controls that look at nothing but a row's scores."""


@pytest.fixture
def chains(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many passes each native call was."""
    found: list[int] = []
    compute = Chain.run
    monkeypatch.setattr(Chain, "run", lambda *call: found.append(1 + len(call[4] or ())) or compute(*call))
    return found


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


@pytest.mark.parametrize(("family", "kind"), EVERYTHING)
def test_the_same_bits_are_cached(family: str, kind: str, known: Any, chains: list[int]) -> None:
    models = known(family, kind).models
    jobs = [Job(prompt, GREEDY) for prompt in PROMPTS]
    expected: dict[tuple[Any, int], list[torch.Tensor]] = {}
    watched = one_by_one(ahead(models, 1))
    answers = run(watched, jobs, hook=lambda engine, _: expected.update(cached(engine)))
    found: dict[tuple[Any, int], list[torch.Tensor]] = {}
    assert run(ahead(models, 6), jobs, hook=lambda engine, _: found.update(cached(engine))) == answers
    assert len(found) >= 3 * len(jobs)
    for key, tensors in found.items():
        assert all(same_bits(*pair) for pair in zip(tensors, expected[key], strict=True)), key[1]
    softcapped = models.target.logit_softcap is not None
    assert (max(chains, default=0) == 6) != softcapped  # that cap is torch's


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
def test_controls(speculation: str, controls: str, known: Any, chains: list[int]) -> None:
    models = known("llama", "fp32").models
    params = SamplingParams(**SAMPLING[controls], max_tokens=21, n=2)
    jobs = [Job(PROMPT, params), Job(PROMPTS[0], GREEDY)]
    expected = run(one_by_one(ahead(models, 1)), jobs)
    chains.clear()
    engine = ahead(models, 7, speculation)
    assert run(engine, jobs) == expected
    if controls in CHAINED:
        assert max(chains) == (7 if speculation == "off" else 4)


def test_drafts_are_those_of_passes_called_one_by_one(known: Any, chains: list[int]) -> None:
    """Also where requests may draft more or less, since their ends are near; and drafts end where texts do."""
    models = known("llama", "fp32").models
    stop = run(ahead(models, 1), [Job(PROMPTS[1], GREEDY)])[0][0][9]
    seeded = SamplingParams(temperature=0.7, seed=3, max_tokens=30, stop_token_ids=[stop])
    jobs = [
        Job(PROMPT, seeded),
        *(Job(p, SamplingParams(temperature=0.0, max_tokens=n)) for n, p in enumerate(PROMPTS, 9)),
    ]
    counters = []
    for engine in (ahead(models, 1, "near", 5), one_by_one(ahead(models, 1, "near", 5))):
        found = run(engine, jobs)
        counters.append((found, engine.counters))
    assert counters[0] == counters[1]
    assert counters[0][1].num_accepted > 10
    assert set(chains) >= {1, 4, 5}


def test_a_text_ends_where_it_ends_within_a_step(known: Any, chains: list[int]) -> None:
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
    assert 1 in chains


@pytest.mark.parametrize("num_blocks", [13, 16, 22])
def test_too_few_pages(num_blocks: int, known: Any) -> None:
    models = known("llama", "int8").models
    jobs = [Job(prompt, SamplingParams(temperature=1.0, seed=n, max_tokens=25)) for n, prompt in enumerate(PROMPTS)]
    expected = run(one_by_one(ahead(models, 1)), jobs)
    engine = ahead(models, 8, num_blocks=num_blocks, block_size=4, enable_prefix_caching=False)
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


def forget_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    start = Chain.__init__

    def forgetful(self: Chain, *rest: Any) -> None:
        start(self, *rest)
        self._depths[:] = 0

    monkeypatch.setattr(Chain, "__init__", forgetful)


def stay_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = model_runner.assemble_behind

    def staying(batch: Any, rows: Any, counts: Any, groups: Any) -> Any:
        behind = plan(batch, rows, counts, groups)
        behind.slots[:] = behind.slots[:1]
        return behind

    monkeypatch.setattr(model_runner, "assemble_behind", staying)


def write_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = model_runner.assemble_behind

    def elsewhere(batch: Any, rows: Any, counts: Any, groups: Any) -> Any:
        behind = plan(batch, rows, counts, groups)
        behind.cells[:, 1:] = behind.cells[:, :1]
        return behind

    monkeypatch.setattr(model_runner, "assemble_behind", elsewhere)


@pytest.mark.parametrize("bug", [forget_depth, stay_in_place, write_elsewhere])
def test_these_tests_see_a_planted_bug(bug: Any, known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    models = known("llama", "fp32").models
    jobs = [Job(PROMPT, SamplingParams(temperature=1.0, seed=8, max_tokens=25, ignore_eos=True))]
    expected = run(one_by_one(ahead(models, 1)), jobs)
    bug(monkeypatch)
    assert run(ahead(models, 6), jobs) != expected


@pytest.mark.parametrize("part", ["cells", "page_table", "slots"])
def test_what_lies_outside_is_refused(part: str, known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine takes it for a step that failed, repeats that without a chain, and the text is whole."""
    models = known("llama", "fp32").models
    expected = run(one_by_one(ahead(models, 1)), [Job(PROMPT, GREEDY)])
    plan = model_runner.assemble_behind
    raised = []

    def wild(batch: Any, rows: Any, counts: Any, groups: Any) -> Any:
        behind = plan(batch, rows, counts, groups)
        for array in (behind.cells, *behind.page_table) if part != "slots" else (behind.slots,):
            if part != "page_table" or array is not behind.cells:
                array[..., -1] = 2**30
        raised.append(part)
        return behind

    monkeypatch.setattr(model_runner, "assemble_behind", wild)
    assert run(ahead(models, 6), [Job(PROMPT, GREEDY)]) == expected
    assert raised
