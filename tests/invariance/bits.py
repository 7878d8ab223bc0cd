"""Runs jobs and keeps the very logits that each output token was sampled from."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from paceline.core.step import StepPlan
from paceline.engine.compute import StepResult
from paceline.engine.engine import Engine
from tests.support.engines import Hook, Job, Tokens, one_by_one, run
from tests.support.native import same_bits

Logits = dict[tuple[tuple[int, ...], int, int], torch.Tensor]
"""(prompt, sample index, output index) -> f32[V]"""


def run_for_logits(engine: Engine, jobs: Sequence[Job], *, hook: Hook | None = None) -> tuple[list[Tokens], Logits]:
    """The answers of jobs whose prompts differ, and the logits of every token that was accepted."""
    kept: Logits = {}
    compute = one_by_one(engine).computation.run

    def recorded(plan: StepPlan) -> StepResult:
        outcome = compute(plan)
        for number, request in enumerate(plan.requests):
            for place, row in enumerate(outcome.verdict.rows[number]):
                output_index = len(request.output_token_ids) + place
                key = tuple(request.group.prompt_token_ids), request.sample_index, output_index
                kept[key] = outcome.output.logits[row].clone()
        return outcome

    engine.computation.run = recorded  # type: ignore[method-assign]
    return run(engine, jobs, hook=hook), kept


def assert_same_logits(found: Logits, expected: Logits) -> None:
    """Bit for bit, wherever both have a token."""
    common = found.keys() & expected.keys()
    assert len(common) >= len(expected) > 0
    differing = [key[1:] for key in sorted(common) if not same_bits(found[key], expected[key])]
    assert not differing, f"{len(differing)} of {len(common)} rows differ, first (sample, output) {differing[0]}"
