"""What the target leaves behind for drafters: there for every cached token, whatever became of it in between."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from paceline.core.layer import PassContext
from paceline.core.params import SamplingParams
from paceline.engine.engine import Engine
from paceline.runner import EagerBuilder
from paceline.runner.features import feature_group
from tests.invariance.conftest import VOCAB_SIZE
from tests.support import proposers as _proposers  # noqa: F401 (registers them)
from tests.support.checkpoints import dense_attend
from tests.support.engines import Job, Models, preempt_every, prompts, run

PROMPTS = prompts(4, VOCAB_SIZE, [23, 7, 40, 3])
JOBS = [
    Job(PROMPTS[0], SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)),
    Job(PROMPTS[1], SamplingParams(temperature=1.0, seed=4, n=3, max_tokens=18, ignore_eos=True)),
    Job(PROMPTS[2], SamplingParams(temperature=0.0, max_tokens=9)),
    Job(PROMPTS[3], SamplingParams(temperature=0.7, seed=9, max_tokens=25, ignore_eos=True)),
]
READING = {"method": "feature_tree", "model": "reader", "num_speculative_tokens": 3}
SHAPES: list[dict[str, Any]] = [
    {"block_size": 4, "max_num_batched_tokens": 2048},
    {"block_size": 1, "max_num_batched_tokens": 24},
    {"block_size": 16, "max_num_batched_tokens": 30, "max_num_seqs": 4},
    {"cache": "static"},
]


def expected_features(engine: Engine, tokens: list[int]) -> torch.Tensor:
    """f[T, F] computed from scratch."""
    runner, kept = engine.runner, engine.runner.kept
    assert kept is not None
    with torch.inference_mode():
        context = PassContext(attend=dense_attend(runner.model), taps=kept.taps)
        _, features = runner.model(torch.tensor(tokens), torch.arange(len(tokens)), context)
        found: torch.Tensor = kept.fuse(features)
    return found


def check_features(engine: Engine, _step: int) -> None:
    """Of every running request's cached tokens."""
    home = feature_group(engine.runner.groups)
    assert home is not None
    group, features = engine.runner.groups[home[0]], home[1]
    for request in engine.scheduler.running:
        count = int(group.num_cached[request.seat])
        if not count:
            continue
        slots = np.arange(count, dtype=np.int32)
        cells = group.cells(np.full(count, request.seat, dtype=np.int32), slots)
        assert torch.allclose(features[torch.from_numpy(cells)], expected_features(engine, request.window[:count]))


def draft_kv(engine: Engine) -> dict[tuple[str, int], torch.Tensor]:
    """K of the drafter's first layer, by request and slot, as far as it is cached."""
    proposer = engine.proposer
    assert proposer is not None
    assert proposer.cache is not None
    (group,) = proposer.cache.groups
    found = {}
    for request in engine.scheduler.running:
        pages = torch.tensor(group.held_pages(request.seat), dtype=torch.int64)
        keys = group.store.read(0, pages)[0].transpose(1, 2).flatten(0, 1)
        for slot in range(1, int(group.num_cached[request.seat])):
            found[request.id, slot] = keys[slot].clone()
    return found


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("preempt", [0, 3])
def test_features_are_those_of_each_cached_token(shape: dict[str, Any], preempt: int, llama: Models) -> None:
    """Over accepted trees, chunks, forks, shared prefixes and preemption; and the texts are those without drafts."""
    expected = run(llama.engine(), JOBS)
    engine = llama.engine(READING, **shape)
    again = preempt_every(preempt) if preempt else None

    def hook(engine: Engine, step: int) -> None:
        check_features(engine, step)
        if again is not None:
            again(engine, step)

    assert run(engine, JOBS, hook=hook) == expected
    assert engine.counters.num_accepted > 10
    assert run(engine, JOBS, hook=check_features) == expected  # prompts are found in the prefix index
    if engine.cache.kind.retains and shape.get("cache") != "static":
        assert engine.cache.num_prefix_hits > 20


def test_the_drafter_reads_the_features_at_the_slot_before(llama: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its K/V do not depend on how the tokens came to be known; a shift of one slot is noticed."""

    def noted(**options: Any) -> dict[tuple[str, int], torch.Tensor]:
        found: dict[tuple[str, int], torch.Tensor] = {}
        run(llama.engine({**READING, **options}), JOBS[:1], hook=lambda engine, _: found.update(draft_kv(engine)))
        return {(key[0].split("-")[0], key[1]): value for key, value in found.items()}

    def same(one: Any, other: Any) -> bool:
        return len(one) > 30 and all(torch.allclose(one[key], other[key]) for key in one.keys() & other.keys())

    deep, shallow = noted(), noted(num_speculative_tokens=1)
    assert deep.keys() & shallow.keys()
    assert same({key[1]: value for key, value in deep.items()}, {key[1]: value for key, value in shallow.items()})
    true = EagerBuilder.features

    def shifted(self: EagerBuilder, rows: Any) -> torch.Tensor:
        if rows.rows is not None:
            rows.rows.slots[:] += 1
        return true(self, rows)

    monkeypatch.setattr(EagerBuilder, "features", shifted)
    wrong = noted()
    assert not same({key[1]: value for key, value in deep.items()}, {key[1]: value for key, value in wrong.items()})
