"""Records the op that lays out a stage's rows, and holds the arrays that it writes for the ops behind it."""

from __future__ import annotations

import ctypes

import numpy as np

from paceline.core.batch import Int32, Int64
from paceline.core.seats import Seats
from paceline.kernels.native.program import Program
from paceline.kernels.native.step_structures import PrepareRows
from paceline.kernels.native.structures import Code, VisibilityArgs, address
from paceline.runner.executor import GraphSizes
from paceline.runner.native.attention import check_below
from paceline.runner.native.buffers import DraftBuffers, GroupBuffers, StateBuffers
from paceline.runner.native.recorded_pass import PassInputs
from paceline.runner.native.recorder import Recorder
from paceline.runner.part import GraphModel
from paceline.runner.rows import RowSpec

NO_BITS = np.zeros(1, dtype=np.int64)
"""Of rows that see no draft: no word is read of any of them."""


class PreparedRows:
    """The rows of one stage of one model, laid out when the op runs."""

    def __init__(
        self,
        runner: GraphModel | None,
        spec: RowSpec,
        stage: int,
        *,
        groups: GroupBuffers,
        sizes: GraphSizes,
        state: StateBuffers,
        draft: DraftBuffers,
        seats: Seats,
        verifies: bool,
    ) -> None:
        """
        Args:
            runner: whose rows these are; None of heads without layers.
            verifies: the rows are the target's, and their samples decide about the draft.
        """
        self.runner, self.spec, self.groups, self.verifies = runner, spec, groups, verifies
        self.row_count, self.sample_count = f"rows {stage}", f"samples {stage}"
        nodes = sizes.requests * (spec.num_nodes if spec.masks else min(spec.num_nodes, sizes.nodes))
        known = sizes.requests if spec.last else sizes.rows
        self.num_rows = max(1, nodes + (known if spec.known else 0))
        self.num_samples = max(1, nodes + (sizes.requests if spec.known else 0))
        self._state, self._draft, self._seats = state, draft, seats
        self._rows(len(groups.groups), sizes)
        self.sample_seats: Int32 = np.zeros(self.num_samples, dtype=np.int32)
        self.output_index, self.places, self.logit_rows = (np.zeros(self.num_samples, dtype=np.int64) for _ in range(3))
        self._structs = groups.structures(self.cells, self._first_visible)
        self._fields: list[object] = []
        self._before: Int64 | None = None
        self._mask_rows: Int64 | None = None
        self.seen = [self._visibility(group) for group in range(len(groups.groups))]

    def _rows(self, num_groups: int, sizes: GraphSizes) -> None:
        count, words = self.num_rows, self._draft.words
        self.token_ids, self.positions, self.angle_rows = (np.zeros(count, dtype=np.int64) for _ in range(3))
        self.visible: Int32 = np.zeros(count, dtype=np.int32)
        self.tree_bits: Int64 = np.zeros((count, words), dtype=np.int64) if words else NO_BITS
        self.row_start, self.sample_start = (np.zeros(sizes.requests + 1, dtype=np.int32) for _ in range(2))
        self.angle_base: Int64 = np.zeros(sizes.requests, dtype=np.int64)
        self.cells: list[Int64] = [np.zeros(count, dtype=np.int64) for _ in range(num_groups)]
        self._first_visible: list[Int32 | None] = [
            None if window is None and not self.spec.first_slot else np.zeros(count, dtype=np.int32)
            for window in self.groups.windows
        ]

    def _visibility(self, group: int) -> VisibilityArgs:
        seen, first, table = VisibilityArgs(), self._first_visible[group], self.groups.tables[group]
        seen.rows, seen.row_start, seen.visible = self.num_rows, address(self.row_start), address(self.visible)
        seen.first_visible = None if first is None else address(first)
        seen.context, seen.tree_bits, seen.words = (
            address(self._state.context),
            address(self.tree_bits),
            self._draft.words,
        )
        seen.page_table, seen.page_table_stride = address(table), table.shape[1]
        return seen

    def record(self, recorder: Recorder, width: int) -> None:
        """``width``: places of one request's samples."""
        recorder.capacity |= {self.row_count: self.num_rows, self.sample_count: self.num_samples}
        self._recorded = self._structure(width)
        self._number = recorder.add(Code.PREPARE_ROWS, self._recorded, self, count="")

    def _structure(self, width: int) -> PrepareRows:
        state, spec, tokens = self._state, self.spec, self._seats.tokens
        struct = PrepareRows(tokens_stride=tokens.shape[1], places_stride=width, num_groups=len(self._structs))
        struct.first_node, struct.num_nodes = spec.first_node, spec.num_nodes
        struct.position_shift, struct.first_slot, struct.last = spec.position_shift, spec.first_slot, spec.last
        struct.seats, struct.context, struct.first_index, struct.ended, struct.tokens = map(
            address, (state.seats, state.context, state.first_index, state.ended, tokens)
        )
        struct.sampled = address(state.sampled if self.verifies else state.drafts)
        struct.limit = address(self._draft.counts if self.verifies else state.limit)
        if spec.masks is not None:
            struct.masks, struct.limit = 1, address(state.depth)
            for name in ("first_output", "repeats_last", "sees_all"):
                setattr(struct, name, getattr(spec.masks, name))
            struct.mask_token = spec.masks.token
        if spec.known:
            struct.start = address(state.target_start if self.verifies else state.draft_start)
        struct.draft = ctypes.addressof(self._draft.structure)
        struct.groups = ctypes.addressof(self._structs)
        for name in ("token_ids", "positions", "angle_rows", "visible", "tree_bits", "row_start", "sample_start"):
            setattr(struct, name, address(getattr(self, name)))
        for name in ("logit_rows", "output_index", "sample_seats", "places", "angle_base"):
            setattr(struct, name, address(getattr(self, name)))
        return struct

    def cells_before(self, groups: GroupBuffers, group: int) -> Int64:
        """[T] the cells of the known slots before the rows in a group of another model. Asked for until ``finish``."""
        if self._before is None:
            self._before = np.zeros(self.num_rows, dtype=np.int64)
            none = [None] * len(groups.groups)
            self._before_structs = groups.structures([self._before] * len(none), none)
            self._recorded.before = ctypes.addressof(self._before_structs[group])
        return self._before

    def mask_rows(self) -> Int64:
        """[T] the row itself of a mask node, else -1. Asked for until ``finish``."""
        if self._mask_rows is None:
            self._mask_rows = np.zeros(self.num_rows, dtype=np.int64)
            self._recorded.mask_rows = address(self._mask_rows)
        return self._mask_rows

    def inputs(self) -> PassInputs:
        return PassInputs(
            token_ids=self.token_ids,
            positions=self.positions,
            angle_rows=self.angle_rows,
            cells=self.cells,
            seen=self.seen,
            logit_rows=self.logit_rows,
            samples=self.sample_count,
        )

    def bind(self, program: Program) -> None:
        """Has the op write the numbers of rows and samples that the ops behind it go by."""
        self._op = struct = program.structure(self._number, PrepareRows)
        rows, samples = (program.addresses(count) for count in (self.row_count, self.sample_count))
        struct.row_fields, struct.num_row_fields = address(rows), len(rows)
        struct.sample_fields, struct.num_sample_fields = address(samples), len(samples)
        self._fields += [rows, samples]

    def set_requests(self, requests: int) -> None:
        self._op.requests = requests
        for seen in self.seen:
            seen.requests = requests

    def plan(self, end: int) -> None:
        """``end``: no row of the call lies at this slot or behind it."""
        for seen in self.seen:
            seen.most_visible = end

    @property
    def counts(self) -> dict[str, int]:
        """The most rows and samples, by the names that ops go by."""
        return {self.row_count: self.num_rows, self.sample_count: self.num_samples}


def check_pages(pages: GroupBuffers, requests: int, end: int) -> None:
    """
    Raises:
        IndexError: a page that a pool does not have, or a slot beyond the page tables.
    """
    for group, table, num_pages in zip(pages.groups, pages.tables, pages.num_pages, strict=True):
        check_below(table[:requests], num_pages, "page")
        if end > table.shape[1] * group.page_size:
            raise IndexError(f"slot {end - 1} is outside 0..{table.shape[1] * group.page_size - 1}")
