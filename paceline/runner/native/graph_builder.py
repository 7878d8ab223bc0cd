"""Records the round of a step as native ops, from the same description that the eager builder computes at once."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from torch import nn

from paceline.core.batch import Int64
from paceline.core.seats import Seats
from paceline.kernels.native.program import Program
from paceline.kernels.native.sampling import SampleCall
from paceline.kernels.native.step_structures import Accept, GrowChain, InheritRows, MoveCells
from paceline.kernels.native.structures import Code, address
from paceline.runner.executor import GraphSizes
from paceline.runner.features import feature_group
from paceline.runner.native.buffer_pool import BufferPool
from paceline.runner.native.buffers import (
    DraftBuffers,
    GroupBuffers,
    ResultBuffers,
    StateBuffers,
    pools_of,
)
from paceline.runner.native.lowering import modules
from paceline.runner.native.prepared_rows import PreparedRows
from paceline.runner.native.recorded_pass import RecordedPass
from paceline.runner.native.recorder import Recorder
from paceline.runner.native.side import Side
from paceline.runner.native.trees import BestTokens, TreeGrowth, TreePruning
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
        self.best_tokens: tuple[BestTokens, PreparedRows, int] | None = None
        self._last: RecordedPass | None = None
        self._of_rows: list[torch.Tensor] = []
        """What ``apply`` gave: they have a row for each of a stage's, where logits have one for each sampled."""
        self._reads_features = False
        self.ops: dict[str, list[int]] = {}
        """The numbers of ops by the kind of their struct, all of which go by the number of requests."""
        self.first_sample = -1
        self._recorder = Recorder({}, pool)
        self._level = 0

    def side(self, runner: GraphModel) -> Side:
        if runner not in self.sides:
            self.sides[runner] = Side(runner.model, runner.layers, GroupBuffers(runner.groups, self.sizes))
        return self.sides[runner]

    def place(self, runner: GraphModel | None, spec: RowSpec) -> PreparedRows:
        side = None if runner is None else self.side(runner)
        # Else the target itself drafts.
        verifies = runner is self.target and spec.known and not spec.last and spec.masks is None
        rows = PreparedRows(
            runner,
            spec,
            len(self.stages),
            groups=GroupBuffers([], self.sizes) if side is None else side.pages,
            sizes=self.sizes,
            state=self.state,
            draft=self.draft,
            seats=self.seats,
            verifies=verifies,
        )
        rows.record(self._recorder, self.sizes.nodes + verifies)
        self.stages.append(rows)
        if side is not None:
            side.stages.append(rows)
        return rows

    def forward(
        self,
        rows: PreparedRows,
        *,
        taps: tuple[int, ...] = (),
        inputs: torch.Tensor | None = None,
        layers: int | None = None,
    ) -> RecordedPass:
        assert rows.runner is not None
        side, recorder = self.sides[rows.runner], self._recorder
        recorder.count = rows.row_count
        found = RecordedPass(side.model, side.layers, recorder, taps, rows.inputs(), beside=inputs, num_layers=layers)
        if self._last is not None:
            self._last.give(recorder)
        self._last = found
        side.passes.append(found)
        return found

    def features(self, rows: PreparedRows, masks: torch.Tensor | None = None) -> torch.Tensor:
        """f32[T, F] of the slot before each row; of mask nodes ``masks``, of others anything that is kept."""
        group, kept = self._kept()
        self._reads_features = True
        found = self._gathered(kept, rows.cells_before(self.side(self.target).pages, group), rows)
        if masks is not None:
            of_rows = masks.to(kept.dtype).float().repeat(rows.num_rows, 1)
            self._recorder.scatter(of_rows, found, torch.from_numpy(rows.mask_rows()))
        return found

    def _kept(self) -> tuple[int, torch.Tensor]:
        """The number of the target's group that keeps features, and these: f[cells, F]."""
        home = feature_group(self.target.groups)
        assert home is not None
        return home

    def inherit(self, x: torch.Tensor, before: PreparedRows, rows: PreparedRows) -> torch.Tensor:
        """f32[T, D] rows of x, which is over the rows of ``before``, of the nodes' parents.

        Raises:
            ValueError: rows of known tokens, which have no parents.
        """
        if rows.spec.known:
            raise ValueError("known tokens have no parents\nPlace nodes alone: RowSpec(known=False, ...).")
        parents = np.zeros(rows.num_rows, dtype=np.int64)
        struct = InheritRows(draft=ctypes.addressof(self.draft.structure), first_node=rows.spec.first_node)
        struct.first_sample = -1 if before.spec.known else before.spec.first_node
        struct.row_start, struct.parents = address(rows.row_start), address(parents)
        struct.sample_start, struct.logit_rows = address(before.sample_start), address(before.logit_rows)
        self._add(Code.INHERIT_ROWS, struct, before, rows)
        return self._gathered(x, parents, rows)

    def _gathered(self, table: torch.Tensor, index: Int64, rows: PreparedRows) -> torch.Tensor:
        self._recorder.count = rows.row_count
        out = self._recorder.take(table.shape[1])
        self._recorder.gather(table, out, torch.from_numpy(index))
        return out

    def apply(self, module: nn.Module, rows: PreparedRows, *inputs: torch.Tensor) -> torch.Tensor:
        """f32[T, out]; raises TypeError of a module that has no native form."""
        self._recorder.count = rows.row_count
        out = modules.of(module)(module, self._recorder, *inputs)
        self._of_rows.append(out)
        return out

    def _index(self, logits: torch.Tensor, rows: PreparedRows) -> Int64:
        """[R] the row of ``logits`` that each sampled row has."""
        of_rows = any(logits is some for some in self._of_rows)
        return rows.logit_rows if of_rows else np.arange(rows.num_samples, dtype=np.int64)

    def sample(self, logits: torch.Tensor, rows: PreparedRows) -> Int64:
        """Where the tokens of the rows will be: of a drafter, the next nodes of the draft."""
        if any(logits is some for some in self._of_rows):
            chosen = self._recorder.take(logits.shape[1], rows.sample_count)
            self._recorder.gather(logits, chosen, torch.from_numpy(rows.logit_rows), count=rows.sample_count)
            logits = chosen
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

    def extend_tree(self, logits: torch.Tensor, rows: PreparedRows, width: int, *, shared: bool = False) -> None:
        """Takes the ``width`` likeliest paths of the best tokens behind the nodes of a level as the next level."""
        index, draft = self._index(logits, rows), self.draft
        growth = TreeGrowth(logits, index, rows, width, state=self.state, draft=draft, level=self._level, shared=shared)
        self._recorder.add(Code.LOGPROBS, growth.top.structure, growth, count=rows.sample_count)
        self._add(Code.GROW_TREE, growth.structure, growth)
        self._level += 1

    def prune(self, num_nodes: int) -> None:
        """Leaves of each tree the ``num_nodes`` nodes whose paths are the likeliest."""
        pruning = TreePruning(self.draft, num_nodes)
        self._add(Code.PRUNE_TREE, pruning.structure, pruning)

    def keep(self, features: torch.Tensor, rows: PreparedRows) -> None:
        """Writes f32[T, F] of the target's rows to the cells of their slots."""
        group, kept = self._kept()
        self._recorder.count = rows.row_count
        self._recorder.scatter(features, kept, torch.from_numpy(rows.cells[group]))

    def best(self, logits: torch.Tensor, rows: PreparedRows, count: int) -> None:
        """Finds the likeliest ``count`` tokens of each sampled row, as many as there are."""
        best = BestTokens(logits, self._index(logits, rows), min(count, logits.shape[1]))
        self._recorder.add(Code.LOGPROBS, best.structure, best, count=rows.sample_count)
        self.best_tokens = best, rows, count

    def _add(self, code: Code, struct: ctypes.Structure, *keep: object) -> None:
        number = self._recorder.add(code, struct, self.state, self.draft, self.results, *keep, count="")
        self.ops.setdefault(type(struct).__name__, []).append(number)

    def accept(self, samples: Int64) -> None:
        """Takes what the samples say of each draft, and moves on what is known."""
        state, results, sizes = self.state, self.results, self.sizes
        side = self.side(self.target)
        stride = self.seats.tokens.shape[1]
        struct = Accept(length=sizes.length, tokens_stride=stride, stops=state.stops.structure())
        struct.feeds_again = self._reads_features  # only now the target's features of the accepted nodes are there
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
