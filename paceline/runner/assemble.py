"""Lays works and drafts out as flat rows; knows slots and positions, not models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from paceline.cache.group import LayerGroup
from paceline.core.batch import Batch, Behind, Drafts, Int32, Int64, SampleRows, Works
from paceline.core.seats import Seats
from paceline.runner.layout import layout, stretches

Bool = npt.NDArray[np.bool_]

_NO_ROWS = np.zeros(0, dtype=np.int64)


def assemble(
    works: Works, drafts: Drafts, seats: Seats, groups: Sequence[LayerGroup], *, sampled: Bool | None = None
) -> Batch:
    """One row per known token and per draft node, requests one after another.

    Known token at slot s: position s, sees slots up to s. Draft node i: slot context + i, position
    context + depth - 1, sees the known tokens and its ancestors.

    ``sampled`` bool[B] names the works of which the last known token and the draft are sampled, and nothing else is
    wanted then; None takes those that reach the end of what is known, and all rows that requests asked for.
    """
    context = works.end
    reading = [] if sampled is not None else _reading(works, seats)
    if sampled is None:
        sampled = _sampled(works, seats, context, reading)
    made = layout(works.num_known, drafts.counts, sampled)
    rows = made.rows
    row_seat, slot = rows.spread(works.seats), rows.spread(works.start) + rows.place
    positions, visible = slot.astype(np.int64), slot + 1
    tree_bits = np.zeros((len(slot), -(-drafts.width // 64)), dtype=np.int64)
    if drafts.width:
        token_ids = seats.tokens[row_seat, np.minimum(slot, seats.max_len - 1)].astype(np.int64)
        at, chosen = (made.node_owner, made.node), made.node_rows
        token_ids[chosen] = drafts.tokens[at]
        positions[chosen] = context[made.node_owner] + drafts.depths[at] - 1
        visible[chosen] = context[made.node_owner]
        tree_bits[chosen] = drafts.ancestor_bits[at]
    else:
        token_ids = seats.tokens[row_seat, slot].astype(np.int64)
    return Batch(
        token_ids=token_ids,
        positions=positions,
        row_request=rows.owner,
        visible=visible,
        tree_bits=tree_bits,
        row_start=rows.start,
        context=context,
        num_slots=context + drafts.counts if drafts.width else context,
        longest=seats.longest[works.seats],
        slots=_cells(groups, row_seat, slot),
        page_table=tuple([group.page_table[works.seats] for group in groups]),
        logit_rows=made.logit_rows.copy(),  # torch takes no array that cannot be written to
        sample_start=made.sample_start,
        prompt_rows=_prompt_rows(works, rows.start, reading),
        first_visible=tuple([_first_visible(group, positions) for group in groups]),
        pooled_rows=_pooled_rows(works, rows.start, reading),
    )


def assemble_chain_end(chosen: Int32, slots: Int32, tokens: Int32, seats: Seats, groups: Sequence[LayerGroup]) -> Batch:
    """One row per seat in ``chosen`` [B]: ``tokens`` [B] at logical ``slots`` [B], seeing everything up to itself.

    A drafter feeds its own tokens this way: they are not known yet, and it needs all rows' logits.
    """
    rows = stretches(np.ones(len(chosen), dtype=np.int32))
    visible = slots + 1
    return Batch(
        token_ids=tokens.astype(np.int64),
        positions=slots.astype(np.int64),
        row_request=rows.owner,
        visible=visible,
        tree_bits=np.zeros((len(chosen), 0), dtype=np.int64),
        row_start=rows.start,
        context=visible,
        num_slots=visible,
        longest=seats.longest[chosen],
        slots=_cells(groups, chosen, slots),
        page_table=tuple([group.page_table[chosen] for group in groups]),
        logit_rows=rows.owner.astype(np.int64),
        sample_start=rows.start,
        prompt_rows=_NO_ROWS,
        first_visible=tuple([_first_visible(group, slots) for group in groups]),
    )


def assemble_behind(
    batch: Batch, rows: SampleRows, counts: Int32, groups: Sequence[LayerGroup], enders: Sequence[Sequence[int]] = ()
) -> Behind:
    """Passes behind ``batch``, of which row r of ``rows`` is the one row of request r that is sampled.

    As many passes as the largest of ``counts`` [B]. A request with less room takes part in the others for nobody: its
    row reads what it has and writes to the padding page.
    """
    number = np.arange(int(counts.max(initial=0)), dtype=np.int32)[:, None]
    slots = batch.context + np.minimum(number, counts - 1)  # [passes, B]
    cells = _cells(groups, rows.seats, slots)
    if counts.min(initial=len(number)) < len(number):
        cells[:, number >= counts] = 0
    first_visible = tuple([_first_visible(group, slots) for group in groups])
    return Behind(slots, cells, batch.page_table, batch.longest, first_visible, enders)


def _cells(groups: Sequence[LayerGroup], seats: Int32, slots: Int32) -> Int64:
    """[G, T] physical cells."""
    if len(groups) == 1:
        return groups[0].cells(seats, slots)[None]
    return np.stack([group.cells(seats, slots) for group in groups])


def _reading(works: Works, seats: Seats) -> list[int]:
    """Numbers of the works that feed tokens of the prompt; where all decode there are none."""
    return np.flatnonzero(works.start < seats.prompt_len[works.seats]).tolist()


def _sampled(works: Works, seats: Seats, context: Int32, reading: list[int]) -> Bool:
    """[B] whether each work's last known token is sampled: it is the request's last, and that is no embedding."""
    sampled: Bool = context == seats.num_tokens[works.seats]
    for number in reading:
        sampled[number] &= works.requests[number].group.pooled is None
    return sampled


def _prompt_rows(works: Works, row_start: Int32, reading: list[int]) -> Int64:
    """Rows that predict a prompt token, for the requests that asked for prompt_logprobs."""
    parts = []
    for number in reading:
        request = works.requests[number]
        group = request.group
        # A window slides once its request has an output token, hence all of its prompt's rows.
        if group.params.prompt_logprobs is not None and request is group.members[0] and not request.num_dropped:
            last = min(int(works.end[number]), len(group.prompt_token_ids) - 1)
            count = max(0, last - int(works.start[number]))
            parts.append(row_start[number] + np.arange(count, dtype=np.int64))
    return np.concatenate(parts) if parts else _NO_ROWS


def _pooled_rows(works: Works, row_start: Int32, reading: list[int]) -> Int64:
    """Rows whose hidden states an embedding still lacks."""
    parts = []
    for number in reading:
        pooled = works.requests[number].group.pooled
        if pooled is not None:
            first = max(0, pooled.next_row - int(works.start[number]))
            parts.append(row_start[number] + np.arange(first, int(works.num_known[number]), dtype=np.int64))
    return np.concatenate(parts) if parts else _NO_ROWS


def _first_visible(group: LayerGroup, positions: Int32 | Int64) -> Int32 | None:
    return None if group.window is None else np.maximum(0, positions - group.window + 1).astype(np.int32)


def sample_rows(works: Works, drafts: Drafts, seats: Seats, sample_start: Int32) -> SampleRows:
    """Who each sampled row belongs to, which output token it decides, and the draft tokens before it."""
    rows = stretches(sample_start[1:] - sample_start[:-1])
    seat = rows.spread(works.seats)
    index = (seats.num_tokens[seat] - seats.prompt_len[seat]).astype(np.int64)
    if not drafts.width:
        return SampleRows(seats=seat, output_index=index, path=np.zeros((len(seat), 0), dtype=np.int32))
    on_node = np.flatnonzero(rows.place)  # the first row of each is the last known token's
    at = rows.owner[on_node], rows.place[on_node] - 1
    path = np.full((len(seat), drafts.paths.shape[2]), -1, dtype=np.int32)
    path[on_node] = drafts.paths[at]
    index[on_node] += drafts.depths[at]
    return SampleRows(seats=seat, output_index=index, path=path)
