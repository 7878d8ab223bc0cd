"""Rounds of drafting and verifying in one native call: each starts where the one before it left off.

A round drafts a chain of ``depth`` tokens, verifies it, and moves what is known on; its ops are recorded once and run
as often as there are rounds. Every round takes the same rows: the drafter is fed the last two known tokens, since after
a chain that stood as a whole it lacks both. What it has cached of the first already, it computes again, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paceline.attention import LayerMap
from paceline.core.batch import Int32, Int64
from paceline.kernels.native.program import Program
from paceline.kernels.native.sampling import SampleCall
from paceline.kernels.native.structures import Advance, Code, address
from paceline.models import CausalLM
from paceline.runner.native.attention import check_below
from paceline.runner.native.ends import Ends
from paceline.runner.native.placed_rows import Known, PlacedRows
from paceline.runner.native.recorded_pass import RecordedPass
from paceline.runner.native.recorder import LOGITS, Recorder

PAIRS, NODES = "pairs", "nodes"
"""Rows of the drafter's first pass, two for each request, and of the target's, one more than a draft is deep."""


@dataclass(frozen=True, slots=True)
class Recordable:
    """A model whose passes native ops can compute, and where its layers keep K/V."""

    model: CausalLM
    layers: LayerMap

    @property
    def moves_on(self) -> bool:
        """Whether ops alone can lay out its next rows and sample them."""
        fixed = all(not rotary.depends_on_length and rotary.table is not None for rotary in self.model.rotaries)
        return fixed and self.model.logit_softcap is None


@dataclass(frozen=True, slots=True)
class Start:
    """Where B requests stand before the first round; both models' caches lack at most the last two tokens."""

    seats: Int32
    context: Int32  # number of known tokens
    first_index: Int64  # number of output tokens
    before: Int32  # the last token but one
    last: Int32
    draft_pages: Sequence[Int32]  # int32[B, P] by layer group
    target_pages: Sequence[Int32]


@dataclass(frozen=True, slots=True)
class Taken:
    """What N rounds came to: of ``sampled`` the first ``counts`` are known now. A draft can hold what is no token."""

    sampled: Int64  # [N, B, depth + 1]
    drafts: Int64  # [N, B, depth]
    counts: Int64  # [N, B]


class Rounds:
    """Up to ``most`` rounds of up to ``requests`` requests."""

    def __init__(
        self, draft: Recordable, target: Recordable, call: SampleCall, *, depth: int, requests: int, most: int
    ) -> None:
        self.call, self.depth, self.requests, self.most = call, depth, requests, most
        self._draft, self._target = draft, target
        self._known = Known(np.zeros(requests, dtype=np.int32), np.zeros(requests, dtype=np.int64))
        self._before, self._last = (np.zeros(requests, dtype=np.int64) for _ in range(2))
        self._drafted, self._sampled = np.zeros((depth, requests), np.int64), np.zeros(requests * (depth + 1), np.int64)
        self._round = np.zeros(1, dtype=np.int64)
        self._tokens, self._drafts = (
            np.zeros(most * len(self._sampled), np.int64),
            np.zeros(most * self._drafted.size, np.int64),
        )
        self._counts = np.zeros(most * requests, dtype=np.int64)
        self._ends = Ends(requests)
        self._seats, self._node_seats = np.zeros(requests, np.int32), np.zeros(len(self._sampled), np.int32)
        self._draft_rows: list[PlacedRows] = []
        self._passes: list[RecordedPass] = []
        recorder = Recorder({PAIRS: 2 * requests, LOGITS: requests, NODES: len(self._sampled)})
        for number in range(depth):
            self._record_draft(recorder, number)
        self._record_target(recorder)
        # Not the rounds themselves, which have the program: what knows each other is not freed at once.
        kept = self._known, self._before, self._last, self._drafted, self._sampled, self._round, self._ends
        kept_results = self._tokens, self._drafts, self._counts
        self._advance = recorder.add(Code.ADVANCE, self._end_of_round(), *kept, *kept_results, count="")
        self._program: Program = recorder.finish()
        for recorded in self._passes:
            recorded.attention.bind(self._program)

    def _record_draft(self, recorder: Recorder, number: int) -> None:
        if number:
            rows = PlacedRows(
                self._draft.layers,
                self._known,
                width=1,
                first=number - 1,
                shift=number,
                token_ids=self._drafted[number - 1],
            )
        else:
            fed = self._before, self._last
            rows = PlacedRows(self._draft.layers, self._known, width=2, first=-2, sampled=1, tokens=fed)
        self._draft_rows.append(rows)
        self._record(recorder, self._draft, rows, LOGITS if number else PAIRS, LOGITS)
        self._sample(recorder, rows, self._seats, self._drafted[number], LOGITS)

    def _record_target(self, recorder: Recorder) -> None:
        fed = self._last, *self._drafted
        self._target_rows = PlacedRows(self._target.layers, self._known, width=self.depth + 1, first=-1, tokens=fed)
        self._record(recorder, self._target, self._target_rows, NODES, NODES)
        self._sample(recorder, self._target_rows, self._node_seats, self._sampled, NODES)

    def _record(self, recorder: Recorder, side: Recordable, rows: PlacedRows, count: str, sampled: str) -> None:
        rows.record(recorder)
        recorder.count = count
        self._passes.append(RecordedPass(side.model, side.layers, recorder, follows=rows.follows(sampled)))

    def _sample(self, recorder: Recorder, rows: PlacedRows, seats: Int32, tokens: Int64, count: str) -> None:
        recorded = self._passes[-1]
        struct = self.call.arguments(recorded.logits, seats, rows.output_index, tokens)
        recorder.add(Code.SAMPLE, struct, self.call, seats, rows, tokens, count=count)
        recorded.give(recorder)

    def _end_of_round(self) -> Advance:
        struct = Advance(depth=self.depth, drafted_stride=self.requests)
        struct.drafted, struct.sampled = address(self._drafted), address(self._sampled)
        struct.context, struct.first_index = address(self._known.context), address(self._known.first_index)
        struct.before, struct.last, struct.round = address(self._before), address(self._last), address(self._round)
        struct.tokens, struct.drafts, struct.counts = map(address, (self._tokens, self._drafts, self._counts))
        struct.enders = self._ends.structure()
        return struct

    def run(self, start: Start, num_rounds: int, enders: Sequence[Sequence[int]]) -> Taken:
        """No further round follows one after which every request has had one of its ``enders``.

        Raises:
            IndexError: a token, a page or a position that there is not.
        """
        assert num_rounds <= self.most
        number = len(start.seats)
        end = int(start.context.max()) + num_rounds * (self.depth + 1)
        self._check(start, end)
        self._known.context[:number], self._known.first_index[:number] = start.context, start.first_index
        self._before[:number], self._last[:number], self._round[0] = start.before, start.last, 0
        self._seats[:number] = start.seats
        self._node_seats[: number * (self.depth + 1)] = np.repeat(start.seats, self.depth + 1)
        for rows in self._draft_rows:
            rows.plan(self._program, number, start.draft_pages, end)
        self._target_rows.plan(self._program, number, start.target_pages, end)
        self._ends.plan(self._program, [(self._advance, Advance)], enders)
        self._program.run({PAIRS: 2 * number, LOGITS: number, NODES: number * (self.depth + 1)}, times=num_rounds)
        shape = int(self._round[0]), number
        tokens, drafts, counts = (
            found[: shape[0] * number * width].reshape(*shape, width).copy()
            for found, width in ((self._tokens, self.depth + 1), (self._drafts, self.depth), (self._counts, 1))
        )
        return Taken(tokens, drafts, counts[:, :, 0])

    def _check(self, start: Start, end: int) -> None:
        """``end``: no row lies at this slot or behind."""
        if start.context.min() < 2:
            raise IndexError("a drafter is fed two known tokens")
        for side, pages in ((self._draft, start.draft_pages), (self._target, start.target_pages)):
            vocab_size = side.model.embedding.tokens.weight.shape[0]
            check_below(start.before, vocab_size, "token id")
            check_below(start.last, vocab_size, "token id")
            for store, table in zip(side.layers.stores, pages, strict=True):
                check_below(table, len(store.pools(0)[0]), "page")
                check_below(np.array([end - 2]), table.shape[1] * store.page_size, "slot")
        last = np.array([end - 2])
        for recorded in (self._passes[0], self._passes[-1]):
            recorded.check_positions(last)
            recorded.attention.rotate(last, last, last)
