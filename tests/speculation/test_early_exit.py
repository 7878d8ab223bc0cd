"""The target's first layers draft: its K/V are as without drafts, and so are the texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from paceline.core.errors import ConfigError
from paceline.models import load_model
from tests.support.checkpoints import tiny_llama
from tests.support.engines import Models, cache_content, mixed_jobs, one_by_one, preempt_every, run
from tests.support.native import needs_library

VOCAB = 31
JOBS = mixed_jobs(VOCAB)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exit")
    tiny_llama(directory, vocab_size=VOCAB, layers=4, hidden=32, max_positions=128)
    return directory


def exiting(top_k: int = 1, **more: Any) -> dict[str, Any]:
    return {"method": "early_exit", "early_exit_layers": 3, "num_speculative_tokens": 3, "draft_top_k": top_k, **more}


@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("preempt", [0, 3])
def test_texts_and_kv_are_those_without_drafts(top_k: int, preempt: int, place: Path) -> None:
    models = Models(load_model(place, dtype=torch.float64), {})
    plain = run(models.engine(), JOBS)
    engine = models.engine(exiting(top_k), block_size=4, max_num_batched_tokens=40)
    again = preempt_every(preempt) if preempt else None

    def hook(engine: Any, step: int) -> None:
        cache_content(engine, models.target, 0)
        if again is not None:
            again(engine, step)

    assert run(engine, JOBS, hook=hook) == plain
    assert engine.counters.num_accepted > 10
    assert len(engine.cache.groups) == 1
    assert run(engine, JOBS) == plain


@needs_library
@pytest.mark.parametrize("top_k", [1, 3])
def test_rounds_of_a_call_are_those_of_passes(top_k: int, place: Path) -> None:
    models = Models(load_model(place, dtype=torch.bfloat16), {})
    plain = run(models.engine(), JOBS)
    eager = one_by_one(models.engine(exiting(top_k), num_scheduler_steps=1))
    assert run(eager, JOBS) == plain
    engine = models.engine(exiting(top_k), num_scheduler_steps=3)
    assert run(engine, JOBS) == plain
    assert engine.computation.graphs.num_captured
    found, wanted = engine.counters, eager.counters
    assert (found.num_drafted, found.num_accepted) == (wanted.num_drafted, wanted.num_accepted)
    assert found.num_accepted > 10


def test_an_exit_behind_the_last_layer_is_refused(place: Path) -> None:
    with pytest.raises(ConfigError, match="at most 3"):
        Models(load_model(place), {}).engine(exiting(early_exit_layers=4))
