"""Lays works and drafts out as flat rows; knows slots and positions, not models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.cache.group import LayerGroup
from paceline.core.batch import Batch, Drafts, Int32, Int64, SampleRows, Works
from paceline.core.seats import Seats


def assemble(works: Works, drafts: Drafts, seats: Seats, groups: Sequence[LayerGroup]) -> Batch:
    """One row per known token and per draft node, requests one after another.

    Known token at slot s: position s, sees slots up to s. Draft node i: slot context + i, position
    context + depth - 1, sees the known tokens and its ancestors.
    """
    counts = works.num_known + drafts.counts
    row_start = _starts(counts)
    row_request = np.repeat(np.arange(len(works), dtype=np.int32), counts)
    local = np.arange(row_start[-1], dtype=np.int32) - row_start[row_request]
    node = local - works.num_known[row_request]
    slot = works.start[row_request] + local
    row_seat, context = works.seats[row_request], works.end
    token_ids = seats.tokens[row_seat, np.minimum(slot, seats.max_len - 1)]
    positions, visible = slot.copy(), slot + 1
    tree_bits = np.zeros((len(slot), -(-drafts.width // 64)), dtype=np.int64)
    if drafts.width:
        rows = np.flatnonzero(node >= 0)
        at = row_request[rows], node[rows]
        token_ids[rows] = drafts.tokens[at]
        positions[rows] = context[at[0]] + drafts.depths[at] - 1
        visible[rows] = context[at[0]]
        tree_bits[rows] = drafts.ancestor_bits[at]
    logit_rows, sample_start = _sampled(works, drafts, seats, row_start)
    return Batch(
        token_ids=token_ids.astype(np.int64),
        positions=positions.astype(np.int64),
        row_request=row_request,
        visible=visible,
        tree_bits=tree_bits,
        row_start=row_start,
        context=context,
        num_slots=context + drafts.counts,
        longest=seats.longest[works.seats],
        slots=np.stack([group.cells(row_seat, slot) for group in groups]),
        page_table=tuple(group.page_table[works.seats] for group in groups),
        logit_rows=logit_rows,
        sample_start=sample_start,
        prompt_rows=_prompt_rows(works, row_start),
        first_visible=tuple(_first_visible(group, positions) for group in groups),
        pooled_rows=_pooled_rows(works, row_start),
    )


def _starts(counts: Int32) -> Int32:
    """[B + 1] where each of B stretches begins, and where the last one ends."""
    starts = np.zeros(len(counts) + 1, dtype=np.int32)
    np.cumsum(counts, out=starts[1:])
    return starts


def assemble_chain_end(chosen: Int32, slots: Int32, tokens: Int32, seats: Seats, groups: Sequence[LayerGroup]) -> Batch:
    """One row per seat in ``chosen`` [B]: ``tokens`` [B] at logical ``slots`` [B], seeing everything up to itself.

    A drafter feeds its own tokens this way: they are not known yet, and it needs all rows' logits.
    """
    rows = np.arange(len(chosen), dtype=np.int32)
    return Batch(
        token_ids=tokens.astype(np.int64),
        positions=slots.astype(np.int64),
        row_request=rows,
        visible=slots + 1,
        tree_bits=np.zeros((len(chosen), 0), dtype=np.int64),
        row_start=np.arange(len(chosen) + 1, dtype=np.int32),
        context=slots + 1,
        num_slots=slots + 1,
        longest=seats.longest[chosen],
        slots=np.stack([group.cells(chosen, slots) for group in groups]),
        page_table=tuple(group.page_table[chosen] for group in groups),
        logit_rows=rows.astype(np.int64),
        sample_start=np.arange(len(chosen) + 1, dtype=np.int32),
        prompt_rows=np.zeros(0, dtype=np.int64),
        first_visible=tuple(_first_visible(group, slots) for group in groups),
    )


def _sampled(works: Works, drafts: Drafts, seats: Seats, row_start: Int32) -> tuple[Int64, Int32]:
    """Rows to sample: the last known token, if the chunk reaches it, and every draft node; none for an embedding."""
    generates = np.array([request.group.pooled is None for request in works.requests], dtype=bool)
    reaches = (works.end == seats.num_tokens[works.seats]) & generates
    wanted = np.where(reaches, drafts.counts + 1, 0)
    sample_start = _starts(wanted)
    owner = np.repeat(np.arange(len(works)), wanted)
    offset = np.arange(sample_start[-1]) - sample_start[owner]
    first = row_start[:-1] + works.num_known - 1
    return (first[owner] + offset).astype(np.int64), sample_start


def _prompt_rows(works: Works, row_start: Int32) -> Int64:
    """Rows that predict a prompt token, for the requests that asked for prompt_logprobs."""
    parts = [np.zeros(0, dtype=np.int64)]
    for number, request in enumerate(works.requests):
        group = request.group
        # A window slides once its request has an output token, hence all of its prompt's rows.
        if group.params.prompt_logprobs is not None and request is group.members[0] and not request.num_dropped:
            last = min(int(works.end[number]), len(group.prompt_token_ids) - 1)
            count = max(0, last - int(works.start[number]))
            parts.append(row_start[number] + np.arange(count, dtype=np.int64))
    return np.concatenate(parts)


def _pooled_rows(works: Works, row_start: Int32) -> Int64:
    """Rows whose hidden states an embedding still lacks."""
    parts = [np.zeros(0, dtype=np.int64)]
    for number, request in enumerate(works.requests):
        pooled = request.group.pooled
        if pooled is not None:
            first = max(0, pooled.next_row - int(works.start[number]))
            parts.append(row_start[number] + np.arange(first, int(works.num_known[number]), dtype=np.int64))
    return np.concatenate(parts)


def _first_visible(group: LayerGroup, positions: Int32) -> Int32 | None:
    return None if group.window is None else np.maximum(0, positions - group.window + 1)


def sample_rows(works: Works, drafts: Drafts, seats: Seats, sample_start: Int32) -> SampleRows:
    """Who each sampled row belongs to, which output token it decides, and the draft tokens before it."""
    counts = np.diff(sample_start)
    owner = np.repeat(np.arange(len(works)), counts)
    node = np.arange(len(owner)) - sample_start[owner] - 1  # -1 = the last known token
    seat = works.seats[owner]
    known = seats.num_tokens[seat] - seats.prompt_len[seat]
    depth = np.zeros(len(owner), dtype=np.int32)
    path = np.zeros((len(owner), 0), dtype=np.int32)
    if drafts.width:
        on_node, safe = node >= 0, np.maximum(node, 0)
        depth = np.where(on_node, drafts.depths[owner, safe], 0)
        path = np.where(on_node[:, None], drafts.paths[owner, safe], -1).astype(np.int32)
    return SampleRows(seats=seat, output_index=(known + depth).astype(np.int64), path=path)
