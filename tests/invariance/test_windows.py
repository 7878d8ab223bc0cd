"""Layers with a window cache in a group of their own, give pages back as they leave it, and nobody can tell."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from tests.invariance.test_matrix import OTHERS
from tests.support import proposers
from tests.support.engines import Models, preempt_every, run


def with_window(models: Models, window: int) -> Models:
    """The first layer sees so many tokens, the second everything."""
    target, near = copy.copy(models.target), copy.copy(models.drafts["near"])
    for model in (target, near):
        first, *rest = model.layer_specs
        model.layer_specs = (replace(first, window=window), *rest)
    return Models(target, {"near": near})


@pytest.fixture(scope="module")
def windowed(llama: Models) -> Models:
    return with_window(llama, 7)


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize("method", ["draft_model", "random_tree"])
def test_a_draft_may_be_deeper_than_a_window(method: str, backend: str, llama: Models) -> None:
    """Then its first tokens are out of its last ones' sight."""
    windowed = with_window(llama, 3)
    expected = run(windowed.engine(cache="none", attention_backend="reference"), OTHERS)
    for job, tokens in zip(OTHERS, expected, strict=True):
        proposers.TRUTH.update({(job.prompt, index): sample for index, sample in enumerate(tokens)})
    model = {"draft_model": "near", "random_tree": "20"}[method]
    speculation = {"method": method, "model": model, "num_speculative_tokens": 7}
    engine = windowed.engine(speculation, block_size=4, attention_backend=backend)
    assert run(engine, OTHERS) == expected
    assert engine.counters.accepted_per_position[3] > 0


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("method", [None, "draft_model", "random_tree"])
def test_windows_are_invisible(method: str | None, block_size: int, windowed: Models) -> None:
    expected = run(windowed.engine(cache="none", attention_backend="reference"), OTHERS)
    for job, tokens in zip(OTHERS, expected, strict=True):
        proposers.TRUTH.update({(job.prompt, index): sample for index, sample in enumerate(tokens)})
    speculation = {"draft_model": {"method": method, "model": "near"}, "random_tree": {"method": method}}.get(
        method or ""
    )
    for chunk, hook in ((2048, None), (5, None), (16, preempt_every(4))):
        engine = windowed.engine(speculation, block_size=block_size, max_num_batched_tokens=chunk)
        assert run(engine, OTHERS, hook=hook) == expected


def test_a_window_changes_the_text_and_saves_pages(windowed: Models, llama: Models) -> None:
    assert run(windowed.engine(), OTHERS) != run(llama.engine(), OTHERS)
    engine = windowed.engine(block_size=1)
    held: list[tuple[int, int]] = []

    def count(engine, _step) -> None:
        windowed_group, full_group = engine.cache.groups
        held.append((windowed_group.pages.num_referenced, full_group.pages.num_referenced))

    run(engine, [OTHERS[2]], hook=count)
    assert max(full for _, full in held) > 30
    assert min(window for window, full in held if full > 30) <= 7
