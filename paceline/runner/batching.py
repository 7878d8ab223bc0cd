"""Lays out the target's rows of a step: what verifies drafts, and rows of prompts that requests asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from paceline.cache.group import KVGroup
from paceline.core.batch import Int32, Int64
from paceline.core.seats import Seats
from paceline.core.step import DraftTrees, StepPlan
from paceline.runner.rows import NO_ROWS, Rows, RowSpec, RowState, place

Bool = npt.NDArray[np.bool_]


def verify_rows(plan: StepPlan, drafts: DraftTrees, seats: Seats, groups: Sequence[KVGroup]) -> Rows:
    """One row per known token and per draft node, requests one after another.

    Sampled are the requests whose rows reach the end of what is known.
    """
    known = seats.num_tokens[plan.seats]
    reading = np.flatnonzero(plan.start < seats.prompt_len[plan.seats]).tolist()
    state = RowState(
        seats=plan.seats,
        context=plan.end,
        start=plan.start,
        output_index=seats.num_output(plan.seats),
        sampled=_sampled(plan, known, reading),
        limit=drafts.counts,
    )
    rows = place(RowSpec(num_nodes=drafts.width), state, drafts, seats, groups)
    if not reading:
        return rows
    start = rows.batch.row_start
    batch = replace(
        rows.batch, prompt_rows=_prompt_rows(plan, start, reading), pooled_rows=_pooled_rows(plan, start, reading)
    )
    return replace(rows, batch=batch)


def _sampled(plan: StepPlan, known: Int32, reading: list[int]) -> Bool:
    """[B] whether each request's last row is of its last known token; a call for an embedding samples nothing."""
    sampled: Bool = plan.end == known
    for number in reading:
        sampled[number] &= plan.requests[number].group.pooled is None
    return sampled


def _prompt_rows(plan: StepPlan, row_start: Int32, reading: list[int]) -> Int64:
    """Rows that predict a prompt token, for the requests that asked for prompt_logprobs."""
    parts = []
    for number in reading:
        request = plan.requests[number]
        group = request.group
        # A window slides once its request has an output token, hence all of its prompt's rows.
        if group.params.prompt_logprobs is not None and request is group.members[0] and not request.num_dropped:
            last = min(int(plan.end[number]), len(group.prompt_token_ids) - 1)
            count = max(0, last - int(plan.start[number]))
            parts.append(row_start[number] + np.arange(count, dtype=np.int64))
    return np.concatenate(parts) if parts else NO_ROWS


def _pooled_rows(plan: StepPlan, row_start: Int32, reading: list[int]) -> Int64:
    """Rows whose hidden states an embedding still lacks."""
    parts = []
    for number in reading:
        pooled = plan.requests[number].group.pooled
        if pooled is not None:
            first = max(0, pooled.next_row - int(plan.start[number]))
            parts.append(row_start[number] + np.arange(first, int(plan.num_known[number]), dtype=np.int64))
    return np.concatenate(parts) if parts else NO_ROWS
