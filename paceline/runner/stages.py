"""Where requests stand when they are drafted for pass by pass, the rows of one stage, and selections of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from paceline.core.batch import Int32, Int64, Output
from paceline.core.step import DraftTrees
from paceline.runner.executor import Pass
from paceline.runner.features import feature_group
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


def features_before(
    target: ModelRunner, rows: StageRows, seats: Int32, masks: torch.Tensor | None = None
) -> torch.Tensor:
    """f[T, F] what the target left at the slot before each row of the requests at ``seats`` [B].

    ``masks``: f[1, F] what is there instead for mask nodes.
    """
    home = feature_group(target.groups)
    assert home is not None
    group, features = home
    if rows.rows is None:
        return features[:0]
    owners = seats[rows.numbers][rows.rows.batch.row_request]
    cells = target.groups[group].cells(owners, np.maximum(rows.rows.slots - 1, 0).astype(np.int32))
    found = features[torch.from_numpy(cells).to(features.device)]
    if masks is not None:
        batch = rows.rows.batch
        nodes = np.flatnonzero(rows.rows.slots >= batch.context[batch.row_request])
        found[torch.from_numpy(nodes).to(found.device)] = masks.to(found.dtype)
    return found


def places_of(rows: StageRows) -> Int64:
    """[R] the place of each sampled row among those of its request."""
    found: Int64 = np.arange(len(rows.sampled)) - np.searchsorted(rows.sampled, rows.sampled)
    return found


def parent_rows(before: StageRows, rows: StageRows) -> Int64:
    """[T] the row of each node's parent in the stage ``before``."""
    assert before.rows is not None
    assert rows.rows is not None
    batch = before.rows.batch
    number = np.searchsorted(before.numbers, rows.numbers)[rows.rows.batch.row_request]
    # Of the rows that are sampled the last known token's is the first, where there is one.
    place = rows.rows.parents - before.spec.first_node + before.spec.known
    found: Int64 = batch.logit_rows[batch.sample_start[number] + place]
    return found


def sampled_rows(logits: torch.Tensor, rows: StageRows) -> torch.Tensor:
    """[R, V] of the rows that are sampled: a pass gives no others, a module that is applied gives all T rows."""
    if rows.rows is None or len(logits) == len(rows.sampled):
        return logits
    return logits[torch.from_numpy(rows.rows.batch.logit_rows).to(logits.device)]


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
