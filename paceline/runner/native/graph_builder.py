"""Records the round of a step as native ops, from the same description that the eager builder computes at once."""

from __future__ import annotations

import ctypes

import numpy as np
import torch

from paceline.core.batch import Int64
from paceline.core.seats import Seats
from paceline.kernels.native.program import Program
from paceline.kernels.native.sampling import SampleCall
from paceline.kernels.native.step_structures import Accept, GrowChain, MoveCells
from paceline.kernels.native.structures import Code, address
from paceline.runner.executor import GraphSizes
from paceline.runner.native.buffer_pool import BufferPool
from paceline.runner.native.buffers import DraftBuffers, GroupBuffers, ResultBuffers, StateBuffers, pools_of
from paceline.runner.native.prepared_rows import PreparedRows
from paceline.runner.native.recorded_pass import RecordedPass
from paceline.runner.native.recorder import Recorder
from paceline.runner.native.side import Side
from paceline.runner.native.trees import TreeGrowth
from paceline.runner.part import GraphModel
from paceline.runner.rows import RowSpec


class NativeBuilder:
    """Takes down the ops of one round; ``finish`` gives the program that repeats it."""

    def __init__(
        self, target: GraphModel, seats: Seats, call: SampleCall, sizes: GraphSizes, pool: BufferPool | None = None
    ) -> None:
        self.target, self.seats, self.call, self.sizes = target, seats, call, sizes
        self.state, self.draft, self.results = StateBuffers(sizes), DraftBuffers(sizes), ResultBuffers(sizes)
        self.samples: Int64 = np.zeros(sizes.requests * (sizes.nodes + 1), dtype=np.int64)
        self.sides: dict[GraphModel, Side] = {}
        self.stages: list[PreparedRows] = []
        self._last: RecordedPass | None = None
        self.ops: dict[str, list[int]] = {}
        """The numbers of ops by the kind of their struct, all of which go by the number of requests."""
        self.first_sample = -1
        self._recorder = Recorder({}, pool)
        self._level = 0

    def side(self, runner: GraphModel) -> Side:
        if runner not in self.sides:
            layers = runner.layers
            self.sides[runner] = Side(runner.model, layers, GroupBuffers(layers, runner.groups, self.sizes))
        return self.sides[runner]

    def place(self, runner: GraphModel, spec: RowSpec) -> PreparedRows:
        side, verifies = self.side(runner), runner is self.target
        rows = PreparedRows(
            runner,
            spec,
            len(self.stages),
            groups=side.pages,
            sizes=self.sizes,
            state=self.state,
            draft=self.draft,
            seats=self.seats,
            verifies=verifies,
        )
        rows.record(self._recorder, self.sizes.nodes + verifies)
        self.stages.append(rows)
        side.stages.append(rows)
        return rows

    def forward(self, rows: PreparedRows, *, taps: tuple[int, ...] = ()) -> RecordedPass:
        side, recorder = self.sides[rows.runner], self._recorder
        recorder.count = rows.row_count
        found = RecordedPass(side.model, side.layers, recorder, taps, rows.inputs())
        if self._last is not None:
            self._last.give(recorder)
        self._last = found
        side.passes.append(found)
        return found

    def sample(self, logits: torch.Tensor, rows: PreparedRows) -> Int64:
        """Where the tokens of the rows will be: of a drafter, the next nodes of the draft."""
        tokens = self.samples if rows.verifies else self.draft.tokens
        struct = self.call.arguments(logits, rows.sample_seats, rows.output_index, tokens)
        struct.places = address(rows.places)
        number = self._recorder.add(Code.SAMPLE, struct, self.call, rows, tokens, count=rows.sample_count)
        if rows.verifies:
            self.first_sample = number
        return tokens

    def extend(self, tokens: Int64) -> None:  # noqa: ARG002 (they are where they belong)
        """Takes the sampled tokens as the next node of each chain."""
        state = self.state
        struct = GrowChain(
            node=self._level, draft=ctypes.addressof(self.draft.structure), stops=state.stops.structure()
        )
        struct.depth, struct.growing, struct.broken, struct.limit = map(
            address, (state.depth, state.growing, state.broken, state.limit)
        )
        self._add(Code.GROW_CHAIN, struct)
        self._level += 1

    def extend_tree(self, logits: torch.Tensor, rows: PreparedRows, width: int) -> None:
        """Takes the ``width`` likeliest paths of the best tokens behind the nodes of a level as the next level."""
        growth = TreeGrowth(logits, rows, width, state=self.state, draft=self.draft, level=self._level)
        self._recorder.add(Code.LOGPROBS, growth.top, growth, count=rows.sample_count)
        self._add(Code.GROW_TREE, growth.structure, growth)
        self._level += 1

    def _add(self, code: Code, struct: ctypes.Structure, *keep: object) -> None:
        number = self._recorder.add(code, struct, self.state, self.draft, self.results, *keep, count="")
        self.ops.setdefault(type(struct).__name__, []).append(number)

    def accept(self, samples: Int64) -> None:
        """Takes what the samples say of each draft, and moves on what is known."""
        state, results, sizes = self.state, self.results, self.sizes
        side = self.side(self.target)
        stride = self.seats.tokens.shape[1]
        struct = Accept(length=sizes.length, tokens_stride=stride, stops=state.stops.structure())
        struct.draft, struct.samples = ctypes.addressof(self.draft.structure), address(samples)
        for name in ("seats", "depth", "sampled", "ended", "context", "target_start", "first_index"):
            setattr(struct, name, address(getattr(state, name)))
        struct.draft_start, struct.tokens = address(state.draft_start), address(self.seats.tokens)
        struct.round, struct.all_ended = address(results.round), address(results.all_ended)
        struct.out_tokens, struct.out_path = address(results.tokens), address(results.path)
        struct.out_counts, struct.out_accepted = address(results.counts), address(results.accepted)
        struct.out_nodes = address(results.nodes)
        moves = [np.zeros(2 * sizes.requests * max(sizes.length, 1), dtype=np.int64) for _ in side.layers.stores]
        groups = side.pages.structures(moves, [None] * len(moves))
        if sizes.trees:
            struct.num_groups, struct.groups = len(groups), ctypes.addressof(groups)
            struct.num_moves = address(results.num_moves)
        self._add(Code.ACCEPT, struct, samples, moves, groups)
        if sizes.trees:
            pools = pools_of(side.layers, moves)
            move = MoveCells(len(pools), ctypes.addressof(pools), address(results.num_moves))
            self._recorder.add(Code.MOVE_CELLS, move, pools, moves, count="")

    def finish(self) -> Program:
        program = self._recorder.finish()
        for rows in self.stages:
            rows.bind(program)
        for side in self.sides.values():
            for found in side.passes:
                found.attention.bind(program)
        return program
