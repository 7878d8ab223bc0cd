"""With native kernels the logits of a token have the same bits, however it came to be computed."""

from __future__ import annotations

from typing import Any

import pytest

from paceline.kernels.native import library
from tests.invariance.bits import assert_same_logits, run_for_logits
from tests.invariance.known import EVERYTHING, JOBS, Known
from tests.invariance.test_matrix import PROMPT
from tests.support.cases import CACHES, SAMPLING, SPECULATION
from tests.support.engines import Hook, Job, preempt_every
from tests.support.native import needs_library, on_threads

pytestmark = needs_library

WAYS: dict[str, tuple[str, dict[str, Any], Hook | None, int]] = {
    "batch": ("off", {}, None, 1),
    "two threads": ("off", {"max_num_batched_tokens": 16}, None, 2),
    "small chunks, small pages, preempted": (
        "off",
        {**CACHES["page1"], "max_num_batched_tokens": 5},
        preempt_every(3),
        1,
    ),
    "drafts": ("near", CACHES["page4"], None, 1),
    "drafts, chunks, preempted": ("near", {**CACHES["static"], "max_num_batched_tokens": 16}, preempt_every(4), 2),
    "trees": ("tree", {**CACHES["page4"], "max_num_batched_tokens": 64}, None, 1),
    "big trees, preempted": ("big_tree", CACHES["page16"], preempt_every(3), 2),
}


def check(known: Known, way: str) -> None:
    speculation, options, hook, threads = WAYS[way]
    known.tell()
    config = SPECULATION[speculation]
    drafting = None if config is None else {**config, "num_speculative_tokens": 4}
    engine = known.models.engine(drafting, model_impl="native", **options)
    with on_threads(threads):
        tokens, logits = run_for_logits(engine, JOBS, hook=hook)
    assert tokens == known.expected
    assert_same_logits(logits, known.logits)
    assert engine.counters.num_accepted > 0 or config is None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("family", "kind"), EVERYTHING)
def test_ways_to_the_same_bits(family: str, kind: str, way: str, known: Any) -> None:
    check(known(family, kind), way)


@pytest.mark.parametrize("level", library.levels())
def test_at_every_level(level: str, tmp_path: Any) -> None:
    library.select(level)
    try:
        models = Known(tmp_path, "llama", "bf16")
        check(models, "drafts, chunks, preempted")
        check(models, "trees")
    finally:
        library.reload()


def test_sampling_controls_see_the_same_bits(known: Any) -> None:
    models = known("llama", "bf16").models
    from paceline.core.params import SamplingParams  # noqa: PLC0415

    for controls in SAMPLING.values():
        job = Job(PROMPT, SamplingParams(**controls, max_tokens=14))
        expected, logits = run_for_logits(models.engine(cache="none", model_impl="native"), [job])
        engine = models.engine({**SPECULATION["near"], "num_speculative_tokens": 4}, model_impl="native")  # type: ignore[dict-item]
        found, rows = run_for_logits(engine, [job], hook=preempt_every(3))
        assert found == expected
        assert_same_logits(rows, logits)
