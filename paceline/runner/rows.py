"""The rule of rows: which rows a stage of a step feeds, where they lie, what they see and what they decide.

A step is rounds; a round is some draft stages, a verify stage, and accept; a stage lays out rows, forwards one model
and samples. This is the rule in numpy. ``csrc/step.h`` is the same rule as a native op, and is tested against it.

A known token at slot s has position s and sees slots up to s. Node i of a draft behind ``context`` known tokens lies at
slot ``context + i``. A node of a chain is like a known token; a node of a tree has position ``context + depth - 1``
and sees the known tokens and its ancestors. The last known token and the nodes are sampled: a row decides output token
``output_index + depth``, where the last known token has depth 0. What differs for mask nodes is said at ``MaskNodes``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paceline.cache.group import KVGroup
from paceline.core.batch import Batch, Int32, Int64, SampleRows
from paceline.core.seats import Seats
from paceline.core.step import DraftTrees, StepPlan
from paceline.runner.ragged import Layout, layout, segments

Bool = npt.NDArray[np.bool_]

NO_ROWS: Int64 = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class MaskNodes:
    """Nodes that are fed before any token is drafted, each of the same token; their samples become a chain all at once.

    Those are fed that help to decide the tokens of a draft as deep as it may be. No controls know what lies between
    the known tokens and such a row.
    """

    token: int
    first_output: int = 1
    """The output token that node 0 decides, from -1: 0 is the one behind the last known token, 1 the next one. At -1
    node 0 decides nothing that is not known, and is not sampled."""
    repeats_last: bool = False
    """Node 0 is the last known token once more."""
    sees_all: bool = False
    """Each sees all that are fed, in both directions."""

    def __post_init__(self) -> None:
        if self.first_output < -1:
            raise ValueError(f"a row of first_output {self.first_output} decides nothing")

    @property
    def unsampled(self) -> int:
        """How many of the first nodes are not sampled."""
        return max(0, -self.first_output)


@dataclass(frozen=True, slots=True)
class RowSpec:
    """Which rows a stage feeds of every request."""

    known: bool = True
    """The known tokens that the model's cache lacks."""
    first_node: int = 0
    num_nodes: int = 0
    """Draft nodes [first_node, first_node + num_nodes), as far as the request has them and wants them fed."""
    position_shift: int = 0
    """What is added to positions; it does not change what a row sees."""
    last: bool = False
    """Of the known tokens only the last one, whatever the model's cache lacks: a stage of heads without a cache."""
    first_slot: int = 0
    """Rows see no slot before this one, except their own: a row that reads what lies before it has none at slot 0."""
    masks: MaskNodes | None = None
    """What the nodes are, if not tokens that were drafted."""

    def __post_init__(self) -> None:
        if self.known and self.first_node:
            raise ValueError(f"known tokens are followed by node 0, not by first_node {self.first_node}")
        if self.masks is not None and (self.first_node or (self.known and self.masks.first_output != 1)):
            raise ValueError("mask nodes begin with node 0, which behind a fed token decides output 1")

    def num_fed(self, limit: Int32) -> Int32:
        """int32[B] nodes that requests with a ``RowState.limit`` of so many feed."""
        if self.masks is not None:
            limit = np.where(limit > 0, limit - np.int32(self.masks.first_output), np.int32(0))
        nodes = np.minimum(limit, self.first_node + self.num_nodes) - self.first_node
        found: Int32 = np.clip(nodes, 0, None).astype(np.int32)
        return found


@dataclass(frozen=True, slots=True)
class RowState:
    """Where B requests stand."""

    seats: Int32
    context: Int32
    """Known tokens that rows may be of."""
    start: Int32
    """The first slot that the model's cache lacks."""
    output_index: Int64
    """Of the output token behind the last known one."""
    sampled: Bool
    """Whether anything of the request is sampled."""
    limit: Int32
    """Nodes from this number on are not fed; in a stage of mask nodes it is how deep a draft may be."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a stage, and those of them that are sampled."""

    batch: Batch
    samples: SampleRows
    slots: Int32
    """[T] where each row lies in its sequence."""
    parents: Int64
    """[T] the node before each node, -1 for the last known token; -1 of known tokens too."""

    def __len__(self) -> int:
        return len(self.batch.token_ids)


def place(spec: RowSpec, state: RowState, drafts: DraftTrees, seats: Seats, groups: Sequence[KVGroup]) -> Rows:
    """Lays out the rows of a stage, request by request, known tokens before nodes."""
    nodes = spec.num_fed(state.limit)
    start = np.maximum(state.start, state.context - np.int32(1)) if spec.last else state.start
    known = state.context - start if spec.known else np.zeros_like(state.context)
    first = start if spec.known else state.context + np.int32(spec.first_node)
    made = layout(known.astype(np.int32), nodes, state.sampled, 0 if spec.masks is None else spec.masks.unsampled)
    rows = made.rows
    seat, slot = rows.expand(state.seats), rows.expand(first) + rows.place
    positions, visible = slot.astype(np.int64), slot + np.int32(1)
    token_ids = seats.tokens[seat, np.minimum(slot, seats.max_len - 1)].astype(np.int64)
    parents = np.full(len(slot), -1, dtype=np.int64)
    words = 0 if drafts.is_chain or spec.masks is not None else -(-drafts.width // 64)
    tree_bits = np.zeros((len(slot), words), dtype=np.int64)
    at, chosen = (made.node_owner, made.node + spec.first_node), made.node_rows
    if spec.masks is not None:
        token_ids[chosen], parents[chosen], visible[chosen] = _mask_nodes(spec.masks, state, made, seats, nodes)
    elif len(chosen):
        token_ids[chosen], parents[chosen] = drafts.tokens[at], drafts.parents[at]
        if words:
            positions[chosen] = state.context[made.node_owner] + drafts.depths[at] - 1
            visible[chosen] = state.context[made.node_owner]
            tree_bits[chosen] = drafts.ancestor_bits[at]
    batch = Batch(
        token_ids=token_ids,
        positions=np.maximum(positions + spec.position_shift, 0) if spec.position_shift else positions,
        row_request=rows.owner,
        visible=visible,
        tree_bits=tree_bits,
        row_start=rows.start,
        context=state.context,
        num_slots=np.maximum(state.context, first + known + nodes),
        longest=seats.longest[state.seats],
        cells=cells(groups, seat, slot),
        page_table=tuple([group.page_table[state.seats] for group in groups]),
        logit_rows=made.logit_rows.copy(),  # torch takes no array that cannot be written to
        sample_start=made.sample_start,
        prompt_rows=NO_ROWS,
        first_visible=tuple([first_visible(group, positions, slot, spec.first_slot) for group in groups]),
    )
    return Rows(batch, _samples(spec, state, drafts, made.sample_start, known), slot, parents)


def _mask_nodes(
    masks: MaskNodes, state: RowState, made: Layout, seats: Seats, counts: Int32
) -> tuple[Int32, Int32, Int32]:
    """[n] each: the tokens of the nodes, their parents, and where the slots end that they see."""
    tokens: Int32 = np.full(len(made.node), masks.token, dtype=np.int32)
    if masks.repeats_last:
        first = made.node == 0
        owner = made.node_owner[first]
        tokens[first] = seats.tokens[state.seats[owner], state.context[owner] - 1]
    seen = counts[made.node_owner] if masks.sees_all else made.node + np.int32(1)
    return tokens, made.node - np.int32(1), state.context[made.node_owner] + seen


def _samples(spec: RowSpec, state: RowState, drafts: DraftTrees, sample_start: Int32, known: Int32) -> SampleRows:
    """Whose each sampled row is, which output token it decides, and the draft tokens before it."""
    counts = sample_start[1:] - sample_start[:-1]
    owner = np.repeat(np.arange(len(counts)), counts)
    index = state.output_index[owner]
    if spec.masks is not None:
        place = np.arange(len(owner)) - sample_start[owner]
        index += np.where(known[owner] > 0, place, place + max(spec.masks.first_output, 0))
        return SampleRows(state.seats[owner], index, np.zeros((len(owner), 0), dtype=np.int32))
    if not drafts.width:
        return SampleRows(state.seats[owner], index, np.zeros((len(owner), 0), dtype=np.int32))
    # Of a request with known tokens the first sampled row is the last of these; it is node -1.
    node = np.arange(len(owner)) - sample_start[owner] + spec.first_node - (known[owner] > 0)
    on_node = np.flatnonzero(node >= 0)
    at = owner[on_node], node[on_node]
    path = np.full((len(owner), drafts.paths.shape[2]), -1, dtype=np.int32)
    path[on_node] = drafts.paths[at]
    index[on_node] += drafts.depths[at]
    return SampleRows(state.seats[owner], index, path)


def sample_rows(plan: StepPlan, drafts: DraftTrees | None, seats: Seats) -> SampleRows:
    """The target's rows that are sampled in a step: the last known tokens, and the nodes of drafts that are there."""
    known = seats.num_tokens[plan.seats]
    index = seats.num_output(plan.seats)
    sampled = plan.end == known
    if drafts is None or not drafts.width:
        some = plan.seats if sampled.all() else plan.seats[sampled]
        index = index if len(some) == len(index) else index[sampled]
        return SampleRows(some, index, np.zeros((len(some), 0), dtype=np.int32))
    ones = np.ones(len(plan), dtype=np.int32)
    state = RowState(plan.seats, plan.end, plan.end - ones, index, sampled, drafts.counts)
    starts = segments(np.where(sampled, drafts.counts + 1, 0).astype(np.int32)).start
    return _samples(RowSpec(num_nodes=drafts.width), state, drafts, starts, ones)


def cells(groups: Sequence[KVGroup], seats: Int32, slots: Int32) -> Int64:
    """[G, T] physical cells."""
    if not groups:
        return np.zeros((0, len(slots)), dtype=np.int64)
    if len(groups) == 1:
        return groups[0].cells(seats, slots)[None]
    return np.stack([group.cells(seats, slots) for group in groups])


def first_visible(group: KVGroup, positions: Int64, slots: Int32, first_slot: int) -> Int32 | None:
    """The first slot that rows see of a group with a window; None where they see the whole prefix."""
    if group.window is None and not first_slot:
        return None
    least = np.minimum(slots, np.int32(first_slot))
    if group.window is None:
        return least
    return np.maximum(least, positions - group.window + 1).astype(np.int32)
