"""Computes a proposer's description of its draft at once, pass by pass; any executor, any verifier.

B requests, K levels of the deepest draft, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from paceline.core.batch import Int32, Int64
from paceline.core.seats import Seats
from paceline.core.step import DraftTrees
from paceline.runner.executor import Pass
from paceline.runner.model_runner import ModelRunner
from paceline.runner.rows import Rows, RowSpec, RowState, place
from paceline.runner.trees import GrowingTrees
from paceline.sampling import NAN, Pipeline

Bool = npt.NDArray[np.bool_]


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

    runner: ModelRunner
    numbers: Int64
    """[A] of these requests, rising."""
    rows: Rows | None
    """None where nobody has a row."""
    sampled: Int64
    """[R] the request of each sampled row."""


class EagerBuilder:
    """Drafts for the requests of one step. A chain ends before a row that is NaN or may choose no token."""

    def __init__(
        self,
        start: DraftStart,
        *,
        seats: Seats,
        pipeline: Pipeline,
        num_nodes: int,
        max_rows: int,
        needs_probs: bool = False,
    ) -> None:
        """``needs_probs``: tokens are drawn with noise of their own; the draft carries what they were drawn from."""
        self._start, self._seats, self._pipeline = start, seats, pipeline
        self._max_rows, self._needs_probs, self._level = max_rows, needs_probs, 0
        count = len(start.seats)
        shape = count, num_nodes
        self._tokens: Int32 = np.zeros(shape, dtype=np.int32)
        self._probs: torch.Tensor | None = None
        self._counts, self._limit = (np.zeros(count, dtype=np.int32) for _ in range(2))
        self._growing: Bool = start.depth > 0
        self._trees: GrowingTrees | None = None
        self._stage: StageRows | None = None
        self.fed_end: Int32 = start.start.copy()
        """[B] slots that hold K/V of known or drafted tokens, of the drafter."""

    def place(self, runner: ModelRunner, spec: RowSpec) -> StageRows:
        state, drafts = self._state(), self._drafts()
        nodes = np.minimum(state.limit, spec.first_node + spec.num_nodes) - spec.first_node
        counts = np.clip(nodes, 0, None) + (state.context - state.start if spec.known else 0)
        numbers = np.flatnonzero(counts)
        if not len(numbers):
            return StageRows(runner, numbers, None, numbers)
        chosen = _select(state, numbers)
        rows = place(spec, chosen, _select_drafts(drafts, numbers), self._seats, runner.groups)
        sampled = np.repeat(numbers, np.diff(rows.batch.sample_start))
        return StageRows(runner, numbers, rows, sampled)

    def forward(self, rows: StageRows, *, taps: tuple[int, ...] = ()) -> Pass:
        self._stage = rows
        if rows.rows is None:
            nothing = torch.zeros(0, 0)
            return Pass(nothing, nothing, None)
        found = self._in_pieces(rows, taps)
        ends = rows.rows.batch.num_slots
        self.fed_end[rows.numbers] = np.maximum(self.fed_end[rows.numbers], ends)
        return found

    def _in_pieces(self, rows: StageRows, taps: tuple[int, ...]) -> Pass:
        """A pass, or several where there are too many rows for one: then the last rows of every request come last."""
        assert rows.rows is not None
        batch = rows.rows.batch
        if len(batch.token_ids) <= self._max_rows:
            output = rows.runner.forward(batch, taps)
            return Pass(output.logits, output.logits, output.features)
        state = _select(self._state(), rows.numbers)
        logits = []
        for number in range(len(rows.numbers)):
            one = _select(state, np.array([number]))
            first, end = int(one.start[0]), int(one.context[0])
            for piece in range(first, end, self._max_rows):
                until = min(piece + self._max_rows, end)
                part = replace(
                    one,
                    start=np.array([piece], dtype=np.int32),
                    context=np.array([until], dtype=np.int32),
                    sampled=one.sampled & (until == end),
                )
                placed = place(RowSpec(), part, DraftTrees.empty(1), self._seats, rows.runner.groups)
                found = rows.runner.forward(placed.batch, taps).logits
                if len(found):
                    logits.append(found.clone())  # the next pass takes their memory
        together = torch.cat(logits) if logits else torch.zeros(0, 0)
        return Pass(together, together, None)

    def sample(self, logits: torch.Tensor, rows: StageRows) -> Int64:
        """int64[R]"""
        if rows.rows is None or not len(rows.sampled):
            return np.zeros(0, dtype=np.int64)
        if not self._needs_probs:
            return self._pipeline.sample(logits, rows.rows.samples)
        tokens, drawn = self._pipeline.draft(logits, rows.rows.samples)
        if self._probs is None:
            self._probs = drawn.new_zeros((*self._tokens.shape, drawn.shape[-1]))
        self._probs[torch.from_numpy(rows.sampled).to(drawn.device), self._level] = drawn
        return tokens

    def extend(self, tokens: Int64) -> None:
        assert self._stage is not None
        node, numbers = self._level, self._stage.sampled
        self._level += 1
        self._limit[:] = 0
        good = tokens >= 0
        if not good.all():
            self._fall_back(numbers[~good], node)
            self._break(numbers[tokens == NAN], node)
            self._growing[numbers[~good]] = False
            numbers, tokens = numbers[good], tokens[good]
        self._tokens[numbers, node] = tokens
        self._counts[numbers] = node + 1
        # Whether a chain goes on hangs on the tokens before the next one alone, as a ratio test needs it.
        goes_on = self._start.depth[numbers] > node + 1
        goes_on &= ~self._ends(numbers, tokens)
        self._growing[numbers] = goes_on
        self._limit[numbers] = np.where(goes_on, node + 1, 0)

    def extend_tree(self, logits: torch.Tensor, rows: StageRows, width: int) -> None:
        if self._trees is None:
            self._trees = GrowingTrees(len(self._start.seats), self._tokens.shape[1])
        level, self._level = self._level, self._level + 1
        bad = self._trees.extend(self._pipeline, logits, rows.sampled, width, first=level == 0)
        self._growing &= self._start.depth > level + 1
        if len(bad):
            self._break(bad, 0)
            self._growing[bad] = False
            self._trees.counts[bad] = -1
        self._counts[:] = self._trees.counts
        self._limit[:] = np.where(self._growing, self._counts, 0)

    def drafts(self) -> DraftTrees:
        """What has been drafted. The count is -1 where not even the first token is good.

        Then the logits were NaN, and so may be what is cached: the drafter must start over.
        """
        if self._trees is not None:
            return DraftTrees(self._trees.tokens, self._trees.parents, self._counts)
        used = int(self._counts.max(initial=0))
        probs = None if self._probs is None else self._probs[:, :used]
        return DraftTrees.chains(np.ascontiguousarray(self._tokens[:, :used]), self._counts, probs)

    def _ends(self, numbers: Int64, tokens: Int64) -> Bool:
        """Whether each sampled token would end its request: what is drafted behind it can never stand."""
        stop_ids = self._start.stop_ids
        ends = [token in stop_ids[number] for number, token in zip(numbers.tolist(), tokens.tolist(), strict=True)]
        return np.array(ends, dtype=np.bool_)

    def _break(self, numbers: Int64, node: int) -> None:
        """Ends drafts whose last rows fed gave NaN."""
        if node == 0:
            self._counts[numbers] = -1
            return
        self._take_back(numbers, self._start.context[numbers] + np.int32(node - 1))

    def _fall_back(self, numbers: Int64, node: int) -> None:
        """The last row fed of a chain that ends too early is fed again, as after any other draft."""
        if node:
            self.fed_end[numbers] = self._start.context[numbers] + np.int32(node - 1)

    def _take_back(self, numbers: Int64, slots: Int32) -> None:
        """Overwrites the K/V of the last rows fed, so that no later attention reads NaN."""
        assert self._stage is not None
        seats = self._start.seats[numbers]
        self.fed_end[numbers] = slots
        for group in self._stage.runner.groups:
            group.move(seats, slots - 1, slots)  # anything finite does

    def _state(self) -> RowState:
        start = self._start
        return RowState(start.seats, start.context, start.start, start.output_index, self._growing, self._limit)

    def _drafts(self) -> DraftTrees:
        if self._trees is not None:
            return DraftTrees(self._trees.tokens, self._trees.parents, np.maximum(self._counts, 0))
        if not self._level:
            return DraftTrees.empty(len(self._start.seats))
        return DraftTrees.chains(self._tokens[:, : self._level], self._counts)


def _select(state: RowState, numbers: Int64) -> RowState:
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


def _select_drafts(drafts: DraftTrees, numbers: Int64) -> DraftTrees:
    if len(numbers) == len(drafts.counts):
        return drafts
    if drafts.is_chain:
        return DraftTrees.chains(drafts.tokens[numbers], drafts.counts[numbers])
    return DraftTrees(drafts.tokens[numbers], drafts.parents[numbers], drafts.counts[numbers])
