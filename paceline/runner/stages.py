"""Where requests stand when they are drafted for pass by pass, the rows of one stage, and selections of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from paceline.core.batch import Int32, Int64, Output
from paceline.core.step import DraftTrees
from paceline.runner.executor import Pass
from paceline.runner.model_runner import ModelRunner
from paceline.runner.rows import Rows, RowSpec, RowState


@dataclass(frozen=True, slots=True)
class DraftStart:
    """Where B requests stand before they are drafted for."""

    seats: Int32
    context: Int32
    """Known tokens."""
    start: Int32
    """The first that the drafter's cache lacks; ``context`` of a request that it is not fed."""
    output_index: Int64
    """Of the next output token."""
    depth: Int32
    """How deep a draft may be."""
    stop_ids: Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class StageRows:
    """The rows of a stage, of those requests that have some."""

    runner: ModelRunner | None
    spec: RowSpec
    numbers: Int64
    """[A] of these requests, rising."""
    rows: Rows | None
    """None where nobody has a row."""
    sampled: Int64
    """[R] the request of each sampled row."""


def pass_of(output: Output, copied: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor) -> Pass:
    assert output.hidden is not None
    features = output.hidden[:, :0] if output.features is None else output.features
    return Pass(copied(output.logits), copied(output.hidden), copied(features))


def select_state(state: RowState, numbers: Int64) -> RowState:
    if len(numbers) == len(state.seats):
        return state
    return RowState(
        state.seats[numbers],
        state.context[numbers],
        state.start[numbers],
        state.output_index[numbers],
        state.sampled[numbers],
        state.limit[numbers],
    )


def select_drafts(drafts: DraftTrees, numbers: Int64) -> DraftTrees:
    if len(numbers) == len(drafts.counts):
        return drafts
    if drafts.is_chain:
        return DraftTrees.chains(drafts.tokens[numbers], drafts.counts[numbers])
    return DraftTrees(drafts.tokens[numbers], drafts.parents[numbers], drafts.counts[numbers])
