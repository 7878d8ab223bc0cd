"""Replays a recorded round as often as a step has rounds, in one native call."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from paceline.core.batch import Drafts, Int32, Int64
from paceline.core.seats import Seats
from paceline.kernels.native.sampling import Edits, SampleCall
from paceline.kernels.native.structures import Accept, GrowChain, GrowTree, Sample
from paceline.runner.executor import GraphResult, GraphSizes, GraphStart, RoundBuilder
from paceline.runner.native.attention import call_angles, check_below
from paceline.runner.native.buffers import GroupBuffers
from paceline.runner.native.graph_builder import NativeBuilder
from paceline.runner.native.prepared_rows import check_pages
from paceline.runner.part import GraphModel

STRUCTS = {kind.__name__: kind for kind in (Accept, GrowChain, GrowTree)}


class NativeGraph:
    """One round of drafting, verifying and accepting for up to ``sizes`` requests, nodes and rows."""

    def __init__(
        self,
        describe: Callable[[RoundBuilder], None],
        target: GraphModel,
        seats: Seats,
        call: SampleCall,
        sizes: GraphSizes,
    ) -> None:
        self.sizes, self.call, self._seats = sizes, call, seats
        self._builder = builder = NativeBuilder(target, seats, call, sizes)
        describe(builder)
        self._program = builder.finish()
        self._ops = [
            self._program.structure(number, STRUCTS[name])
            for name, numbers in builder.ops.items()
            for number in numbers
        ]
        self._sample = self._program.structure(builder.first_sample, Sample)
        self._counts = {name: count for rows in builder.stages for name, count in rows.counts.items()}
        self._edits: object = None

    def replay(self, start: GraphStart, num_rounds: int) -> GraphResult:
        """
        Raises:
            IndexError: a token, a page or a position that there is not.
            ValueError: edits that do not fit.
        """
        number, state = len(start.seats), self._builder.state
        if state.stops.fill(start.stop_ids):
            for struct in self._ops:
                if isinstance(struct, Accept | GrowChain):
                    struct.stops = state.stops.structure()
        self._load(start, number)
        self._plan(start, number, num_rounds)
        for struct in self._ops:
            struct.requests = number
        self._set_edits(start.edits, number)
        results = self._builder.results
        results.round[0] = results.all_ended[0] = 0
        self._program.replay(self._counts, times=num_rounds)
        return self._result(number, int(results.round[0]))

    def _load(self, start: GraphStart, number: int) -> None:
        state = self._builder.state
        state.seats[:number], state.context[:number] = start.seats, start.context
        state.first_index[:number], state.depth[:number] = start.output_index, start.depth
        state.target_start[:number], state.draft_start[:number] = start.target_start, start.draft_start
        state.sampled[:number], state.drafts[:number] = start.sampled, start.depth > 0
        state.ended[:number] = state.broken[:number] = 0
        if start.drafts is not None:
            self._load_drafts(start.drafts, number)

    def _load_drafts(self, drafts: Drafts, number: int) -> None:
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
        self._check_tokens(start)
        self._check_rows(start)
        builder, longest = self._builder, self._seats.longest[start.seats]
        last = start.context + num_rounds * (start.depth + np.int32(1))  # no position of a request's rows is this
        end = int(last.max()) + self.sizes.nodes * self.sizes.trees
        bases: dict[GroupBuffers, Int64 | None] = {}
        for runner, side in builder.sides.items():
            side.pages.load(start.seats)
            check_pages(side.pages, number, end)
            target = runner is builder.target
            first, past = (start.target_start, last) if target else (start.draft_start, _drafted(start, last))
            angles = call_angles(side.model, first, past, longest)
            bases[side.pages] = angles.base
            for found in side.passes:
                found.check_positions(past[past > first] - 1)
                found.attention.use(angles.of_rotaries)
        for rows in builder.stages:
            rows.plan(self._program, number, end, bases[rows.groups])

    def _check_tokens(self, start: GraphStart) -> None:
        """
        Raises:
            IndexError: a known token that a model does not have.
        """
        tokens = self._seats.tokens
        for side in self._builder.sides.values():
            size = side.model.embedding.tokens.weight.shape[0]
            check_below(tokens[start.seats, start.context - 1], size, "token id")
        first = np.minimum(start.target_start, start.draft_start)
        for place in np.flatnonzero(start.context - first > 1).tolist():
            check_below(tokens[start.seats[place], first[place] : start.context[place]], size, "token id")

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
            path=results.path[: count * length].reshape(rounds, number, length).copy(),
            counts=results.counts[:count].reshape(rounds, number).copy(),
            nodes=results.nodes[:count].reshape(rounds, number).copy(),
            target_end=state.target_start[:number].copy(),
            draft_end=state.draft_start[:number].copy(),
            broken=state.broken[:number].astype(bool),
        )


def _drafted(start: GraphStart, last: Int32) -> Int32:
    """[B] no position of a request's rows in the drafter is this: the last node of a draft is not fed."""
    found: Int32 = np.where(start.depth > 0, last - 1, start.context)
    return found
