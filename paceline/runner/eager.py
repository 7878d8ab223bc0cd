"""Computes a proposer's description of its draft at once, pass by pass; any executor, any verifier.

B requests, K levels of the deepest draft, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from paceline.core.batch import Int32, Int64
from paceline.core.seats import Seats
from paceline.core.step import DraftTrees
from paceline.runner.drawn import DrawnTrees
from paceline.runner.executor import Pass
from paceline.runner.model_runner import ModelRunner
from paceline.runner.pieces import PassOptions, forward_in_pieces
from paceline.runner.rows import RowSpec, RowState, place
from paceline.runner.stages import (
    DraftStart,
    StageRows,
    features_before,
    parent_rows,
    pass_of,
    places_of,
    sampled_rows,
    select_drafts,
    select_state,
)
from paceline.runner.trees import GrowingTrees
from paceline.sampling import NAN, Pipeline

Bool = npt.NDArray[np.bool_]


class EagerBuilder:
    """Drafts for the requests of one step. A chain ends before a row that is NaN or may choose no token."""

    def __init__(
        self,
        start: DraftStart,
        *,
        seats: Seats,
        pipeline: Pipeline,
        target: ModelRunner,
        num_nodes: int,
        max_rows: int,
        needs_probs: bool = False,
    ) -> None:
        """``needs_probs``: tokens are drawn with noise of their own; the draft carries what they were drawn from."""
        self._start, self._seats, self._pipeline, self._target = start, seats, pipeline, target
        self._max_rows, self._needs_probs, self._level = max_rows, needs_probs, 0
        count = len(start.seats)
        shape = count, num_nodes
        self._tokens: Int32 = np.zeros(shape, dtype=np.int32)
        self._probs: torch.Tensor | None = None
        self._counts, self._limit = (np.zeros(count, dtype=np.int32) for _ in range(2))
        self._growing: Bool = start.depth > 0
        self._trees: GrowingTrees | DrawnTrees | None = None
        self._stage: StageRows | None = None
        self.fed_end: Int32 = start.start.copy()
        """[B] slots that hold K/V of known or drafted tokens, of the drafter."""

    def place(self, runner: ModelRunner | None, spec: RowSpec) -> StageRows:
        state, drafts = self._state(spec), self._drafts()
        known = np.minimum(state.context - state.start, 1 if spec.last else state.context)
        counts = spec.num_fed(state.limit) + (known if spec.known else 0)
        numbers = np.flatnonzero(counts)
        if not len(numbers):
            self._stage = stage = StageRows(runner, spec, numbers, None, numbers)
            return stage
        chosen = select_state(state, numbers)
        rows = place(spec, chosen, select_drafts(drafts, numbers), self._seats, runner.groups if runner else ())
        sampled = np.repeat(numbers, np.diff(rows.batch.sample_start))
        self._stage = stage = StageRows(runner, spec, numbers, rows, sampled)
        return stage

    def forward(
        self,
        rows: StageRows,
        *,
        taps: tuple[int, ...] = (),
        inputs: torch.Tensor | None = None,
        layers: int | None = None,
    ) -> Pass:
        if rows.rows is None:
            nothing = torch.zeros(0, 0)
            return Pass(nothing, nothing, nothing)
        found = self._passes(rows, taps, inputs, layers)
        ends = rows.rows.batch.num_slots
        self.fed_end[rows.numbers] = np.maximum(self.fed_end[rows.numbers], ends)
        return found

    def _passes(self, rows: StageRows, taps: tuple[int, ...], inputs: torch.Tensor | None, layers: int | None) -> Pass:
        """A pass, or several where there are too many rows for one."""
        assert rows.rows is not None
        assert rows.runner is not None
        batch = rows.rows.batch
        if len(batch.token_ids) <= self._max_rows:
            return pass_of(rows.runner.forward(batch, taps, inputs, layers))
        state = select_state(self._state(rows.spec), rows.numbers)
        drafts = select_drafts(self._drafts(), rows.numbers)
        asked = PassOptions(taps, inputs, layers)
        return forward_in_pieces(rows, state, drafts, asked, seats=self._seats, max_rows=self._max_rows)

    def features(self, rows: StageRows, masks: torch.Tensor | None = None) -> torch.Tensor:
        return features_before(self._target, rows, self._start.seats, masks)

    @staticmethod
    def inherit(x: torch.Tensor, before: StageRows, rows: StageRows) -> torch.Tensor:
        return x[:0] if rows.rows is None else x[torch.from_numpy(parent_rows(before, rows)).to(x.device)]

    def apply(self, module: nn.Module, rows: StageRows, *inputs: torch.Tensor) -> torch.Tensor:
        if rows.rows is None:
            return inputs[0][:0]
        return (rows.runner or self._target).executor.apply(module, *inputs)

    def sample(self, logits: torch.Tensor, rows: StageRows) -> Int64:
        """int64[R]"""
        if rows.rows is None or not len(rows.sampled):
            return np.zeros(0, dtype=np.int64)
        logits = sampled_rows(logits, rows)
        if not self._needs_probs:
            return self._pipeline.sample(logits, rows.rows.samples)
        tokens, drawn = self._pipeline.draft(logits, rows.rows.samples)
        if self._probs is None:
            self._probs = drawn.new_zeros((*self._tokens.shape, drawn.shape[-1]))
        nodes = self._level + (0 if rows.spec.masks is None else places_of(rows))
        self._probs[torch.from_numpy(rows.sampled).to(drawn.device), nodes] = drawn
        return tokens

    def extend(self, tokens: Int64) -> None:
        assert self._stage is not None
        node, numbers = self._level, self._stage.sampled
        if self._stage.spec.masks is not None:
            chosen = (places_of(self._stage) == node) & self._growing[numbers]
            numbers, tokens = numbers[chosen], tokens[chosen]
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

    def extend_tree(self, logits: torch.Tensor, rows: StageRows, width: int, *, shared: bool = False) -> None:
        if self._trees is None:
            self._trees = GrowingTrees(*self._tokens.shape)
        assert isinstance(self._trees, GrowingTrees)
        owners, logits = rows.sampled, sampled_rows(logits, rows)
        if shared and self._level:
            chosen = np.flatnonzero(self._growing[owners])
            chosen = np.repeat(chosen, self._trees.level_sizes[owners[chosen]])
            logits, owners = logits[torch.from_numpy(chosen).to(logits.device)], owners[chosen]
        self._grown(self._trees, self._trees.extend(self._pipeline, logits, owners, width, first=self._level == 0))

    def extend_drawn(self, logits: torch.Tensor, rows: StageRows, width: int) -> None:
        """Takes the next level of each tree: ``width`` tokens behind each node, drawn without replacement."""
        if self._trees is None:
            self._trees = DrawnTrees(*self._tokens.shape)
        assert isinstance(self._trees, DrawnTrees)
        if rows.rows is not None:
            self._grown(self._trees, self._trees.extend(self._pipeline, logits, rows.rows.samples, rows.sampled, width))

    def _grown(self, trees: GrowingTrees | DrawnTrees, bad: Int64) -> None:
        self._level += 1
        self._growing &= self._start.depth > self._level
        if len(bad):
            self._break(bad, 0)
            self._growing[bad] = False
            trees.counts[bad] = -1
        self._counts[:] = trees.counts
        self._limit[:] = np.where(self._growing, self._counts, 0)

    def prune(self, num_nodes: int) -> None:
        if isinstance(self._trees, GrowingTrees):
            self._trees.prune(num_nodes)
            self._counts[:] = np.where(self._counts < 0, self._counts, self._trees.counts)

    def drafts(self) -> DraftTrees:
        """What has been drafted. The count is -1 where not even the first token is good.

        Then the logits were NaN, and so may be what is cached: the drafter must start over.
        """
        if self._trees is not None:
            return self._trees.finished(self._counts)
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
        assert self._stage is not None
        if node == 0:
            self._counts[numbers] = -1
            return
        first, last = self._start.context[numbers], np.int32(node - 1)
        if self._stage.spec.masks is None:
            self._take_back(numbers, first + last)
            return
        fed = self._stage.spec.num_fed(self._start.depth[numbers])
        for slot in range(int(fed.max(initial=0))):  # any of a block may be NaN, for all that is known
            self._take_back(numbers, first + np.minimum(fed - np.int32(1), np.int32(slot)))

    def _fall_back(self, numbers: Int64, node: int) -> None:
        """The last row fed of a chain that ends too early is fed again, as after any other draft."""
        if node:
            self.fed_end[numbers] = self._start.context[numbers] + np.int32(node - 1)

    def _take_back(self, numbers: Int64, slots: Int32) -> None:
        """Overwrites the K/V of the last rows fed, so that no later attention reads NaN."""
        assert self._stage is not None
        seats = self._start.seats[numbers]
        self.fed_end[numbers] = slots
        for group in self._stage.runner.groups if self._stage.runner else ():
            group.move(seats, slots - 1, slots)  # anything finite does

    def _state(self, spec: RowSpec) -> RowState:
        start = self._start
        limit = self._limit if spec.masks is None else start.depth
        return RowState(start.seats, start.context, start.start, start.output_index, self._growing, limit)

    def _drafts(self) -> DraftTrees:
        if self._trees is not None:
            return DraftTrees(self._trees.tokens, self._trees.parents, np.maximum(self._counts, 0))
        if not self._level:
            return DraftTrees.empty(len(self._start.seats))
        return DraftTrees.chains(self._tokens[:, : self._level], self._counts)
