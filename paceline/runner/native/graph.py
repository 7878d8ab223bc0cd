"""Replays a recorded round as often as a step has rounds, in one native call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from paceline.core.batch import Int32, Int64
from paceline.core.seats import Seats
from paceline.core.step import DraftTrees
from paceline.kernels.native.sampling import Edits, SampleCall
from paceline.kernels.native.step_structures import Accept, GrowChain, GrowTree, InheritRows, PruneTree
from paceline.kernels.native.structures import SampleArgs
from paceline.runner.executor import GraphResult, GraphSizes, GraphStart, RoundBuilder
from paceline.runner.native.buffer_pool import BufferPool
from paceline.runner.native.graph_builder import NativeBuilder
from paceline.runner.native.prepared_rows import check_pages
from paceline.runner.part import GraphModel

STRUCTS = {kind.__name__: kind for kind in (Accept, GrowChain, GrowTree, InheritRows, PruneTree)}


class NativeGraph:
    """One round of drafting, verifying and accepting for up to ``sizes`` requests, nodes and rows."""

    def __init__(
        self,
        describe: Callable[[RoundBuilder], None],
        target: GraphModel,
        seats: Seats,
        call: SampleCall,
        sizes: GraphSizes,
        *,
        pool: BufferPool | None = None,
    ) -> None:
        self.sizes, self.call, self._seats = sizes, call, seats
        self._builder = builder = NativeBuilder(target, seats, call, sizes, pool)
        describe(builder)
        self._program = builder.finish()
        self._ops = [
            self._program.structure(number, STRUCTS[name])
            for name, numbers in builder.ops.items()
            for number in numbers
        ]
        self._sample = self._program.structure(builder.first_sample, SampleArgs)
        self._counts = {name: count for rows in builder.stages for name, count in rows.counts.items()}
        self._edits: object = None
        self._loaded: Int32 | None = None

    def replay(self, start: GraphStart, num_rounds: int) -> GraphResult:
        """
        Raises:
            IndexError: a token, a page or a position that there is not.
            ValueError: edits that do not fit.
        """
        number = len(start.seats)
        if start.seats is not self._loaded:
            self._load_requests(start, number)
        self._load(start, number)
        self._plan(start, number, num_rounds)
        self._set_edits(start.edits, number)
        results = self._builder.results
        results.round[0] = results.all_ended[0] = 0
        samples = self._samples(number)
        samples[:] = -1
        self._program.replay(self._counts, times=num_rounds)
        found = self._result(number, int(results.round[0]))
        return found if num_rounds > 1 else replace(found, samples=samples.copy(), best=self._best(number))

    def _samples(self, number: int) -> Int64:
        """[B, nodes + 1]"""
        width = self.sizes.nodes + 1
        return self._builder.samples[: number * width].reshape(number, width)

    def _best(self, number: int) -> Int32 | None:
        """[B, nodes + 1, count] the best tokens of each row, the likeliest first, of equals the lowest."""
        if self._builder.best_tokens is None:
            return None
        best, rows, count = self._builder.best_tokens
        sampled, width = int(rows.sample_start[number]), self.sizes.nodes + 1
        order = np.argsort(-best.logits[:sampled], axis=1, kind="stable")
        found: Int32 = np.full((number * width, count), -1, dtype=np.int32)
        found[rows.places[:sampled], : order.shape[1]] = np.take_along_axis(best.tokens[:sampled], order, axis=1)
        return found.reshape(number, width, count)

    def _load_requests(self, start: GraphStart, number: int) -> None:
        """What stays as it is for as long as the same requests run; whoever makes steps then names the same seats."""
        self._loaded, state = None, self._builder.state
        if state.stops.fill([request.stop_ids for request in start.requests]):
            for struct in self._ops:
                if isinstance(struct, Accept | GrowChain):
                    struct.stops = state.stops.structure()
        state.seats[:number] = start.seats
        for struct in self._ops:
            struct.requests = number
        for rows in self._builder.stages:
            rows.set_requests(number)
        self._loaded = start.seats if not start.seats.flags.writeable else None

    def _load(self, start: GraphStart, number: int) -> None:
        state = self._builder.state
        state.context[:number] = start.context
        state.first_index[:number], state.depth[:number] = start.output_index, start.depth
        state.target_start[:number], state.draft_start[:number] = start.target_start, start.draft_start
        state.sampled[:number], state.drafts[:number] = start.sampled, start.depth > 0
        state.ended[:number] = state.broken[:number] = 0
        if start.drafts is not None:
            self._load_drafts(start.drafts, number)

    def _load_drafts(self, drafts: DraftTrees, number: int) -> None:
        """Trees that the host has made."""
        draft, width = self._builder.draft, drafts.width
        draft.counts[:number] = drafts.counts
        if not width:
            return
        draft.tokens[:number, :width] = drafts.tokens
        if self.sizes.trees:
            draft.parents[:number, :width], draft.depths[:number, :width] = drafts.parents, drafts.depths
            bits = drafts.ancestor_bits
            draft.bits[:number, :width] = 0
            draft.bits[:number, :width, : bits.shape[2]] = bits

    def _plan(self, start: GraphStart, number: int, num_rounds: int) -> None:
        self._check_rows(start)
        builder = self._builder
        last = start.context + num_rounds * (start.depth + np.int32(1))  # no position of a request's rows is this
        end = int(last.max()) + self.sizes.nodes * self.sizes.trees
        for runner, side in builder.sides.items():
            side.pages.load(start.seats)
            check_pages(side.pages, number, end)
            if runner is builder.target:
                side.plan(self._seats, start, start.target_start, last)
            else:
                side.plan(self._seats, start, start.draft_start, _drafted(start, last))
        for rows in builder.stages:
            rows.plan(end)

    def _check_rows(self, start: GraphStart) -> None:
        for known in (start.target_start, start.draft_start):
            if known.min(initial=0) < 0 or int((start.context - known).sum()) > self.sizes.rows:
                raise IndexError("a stage has more rows than the graph has room for")

    def _set_edits(self, edits: Edits | None, number: int) -> None:
        if edits is not None or self._edits is not None:
            rows = number if edits is None else len(edits.start) - 1
            self._edits = self.call.set_edits(self._sample, edits, rows)

    def _result(self, number: int, rounds: int) -> GraphResult:
        results, state, length = self._builder.results, self._builder.state, self.sizes.length
        count = rounds * number
        return GraphResult(
            tokens=results.tokens[: count * (length + 1)].reshape(rounds, number, length + 1).copy(),
            counts=results.counts[:count].reshape(rounds, number).copy(),
            nodes=results.nodes[:count].reshape(rounds, number).copy(),
            draft_end=state.draft_start[:number].copy(),
            broken=state.broken[:number].astype(bool),
        )


def _drafted(start: GraphStart, last: Int32) -> Int32:
    """[B] no position of a request's rows in the drafter is this: the last node of a draft is not fed."""
    found: Int32 = np.where(start.depth > 0, last - 1, start.context)
    return found
