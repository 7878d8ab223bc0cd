"""Several passes in one native call: what is sampled of a pass is fed to the next one.

Knows how passes and samplings are recorded one behind another; not which of the tokens will stand.
"""

from __future__ import annotations

import numpy as np

from paceline.attention import LayerMap
from paceline.core.batch import Batch, Behind, Int64, SampleRows
from paceline.kernels.native.sampling import Edits, SampleCall
from paceline.kernels.native.structures import Code, EndPass, Sample, address
from paceline.models import CausalLM
from paceline.runner.native.ends import EndingOp, Ends
from paceline.runner.native.recorded_pass import Follows, RecordedPass
from paceline.runner.native.recorder import LOGITS, TOKENS, Recorder
from paceline.runner.native.rows_behind import RowsBehind


class Chain:
    """Up to ``depth`` passes: the first over any rows, each other one over a row for every row that was sampled."""

    def __init__(
        self, model: CausalLM, layers: LayerMap, call: SampleCall, capacity: dict[str, int], depth: int
    ) -> None:
        self.call, self.capacity, self.depth = call, capacity, depth
        rows = capacity[LOGITS]
        self._seats = np.zeros(rows, dtype=np.int32)
        self._behind = RowsBehind(layers, depth - 1, rows)
        self._depths = np.arange(depth)[:, None]
        self._output_index, self._tokens = (np.zeros((depth, rows), dtype=np.int64) for _ in range(2))
        self._stops: list[int] = []
        """Of each pass: how many ops there are up to its sampling."""
        self._ends, self._done = Ends(rows), np.zeros(1, dtype=np.int64)
        self._end_ops: list[EndingOp] = []
        """Behind each sampling."""
        self._passes: list[RecordedPass] = []
        self._edits: object = None
        """What the first sampling's struct points to, if anything is edited."""
        recorder = Recorder(capacity)
        for number in range(depth):
            self._record(recorder, model, layers, number)
        self._program = recorder.finish()
        for recorded in self._passes:
            recorded.attention.bind(self._program)

    def _record(self, recorder: Recorder, model: CausalLM, layers: LayerMap, number: int) -> None:
        recorder.count = LOGITS if number else TOKENS
        recorded = RecordedPass(model, layers, recorder, follows=self._follows(number - 1) if number else None)
        arrays = self._seats, self._output_index[number], self._tokens[number]
        sample = self.call.arguments(recorded.logits, *arrays)
        self._stops.append(recorder.add(Code.SAMPLE, sample, self.call, *arrays, count=LOGITS) + 1)
        end = EndPass(tokens=address(self._tokens[number]), enders=self._ends.structure(), passes=address(self._done))
        # Not the chain itself, which has the program: what knows each other is not freed at once.
        kept = self._tokens, self._ends, self._done
        self._end_ops.append((recorder.add(Code.END_PASS, end, *kept, count=""), EndPass))
        recorded.give(recorder)
        self._passes.append(recorded)

    def _follows(self, number: int) -> Follows:
        """What pass ``number`` behind the first reads."""
        behind = self._behind
        cells, seen = [cells[number] for cells in behind.cells], [seen[number] for seen in behind.seen]
        return Follows(self._tokens[number], behind.positions[number], cells, seen)

    def run(self, batch: Batch, rows: SampleRows, edits: Edits | None, behind: Behind | None) -> Int64:
        """int64[1 + N, R]: what is sampled of each pass, as ``SampleCall`` does; a chain goes on behind a -1.

        Fewer passes, where all rows end before. ``edits`` are those of the first pass's rows.

        Raises:
            IndexError: a token, a position, a page or a cell that there is not.
            ValueError: edits that do not fit.
        """
        number, depth = len(rows), 1 if behind is None else 1 + len(behind)
        self._passes[0].plan(batch)
        if behind is not None:
            self._plan(behind)
        if edits is not None or self._edits is not None:
            first_sample = self._program.structure(self._stops[0] - 1, Sample)
            self._edits = self.call.set_edits(first_sample, edits, number)
        self._seats[:number] = rows.seats
        np.add(rows.output_index, self._depths[:depth], out=self._output_index[:depth, :number])
        self._done[0] = 0
        enders = behind.enders if behind is not None and behind.enders else [()] * number
        self._ends.plan(self._program, self._end_ops[: depth - 1], enders)
        self._program.run({TOKENS: len(batch.token_ids), LOGITS: number}, stop=self._stops[depth - 1])
        return self._tokens[: int(self._done[0]) + (not self._ends.all_ended), :number].copy()

    def _plan(self, behind: Behind) -> None:
        """Their page table is that of the first pass, which is planned."""
        first, others = self._passes[0], self._passes[1 : 1 + len(behind)]
        first.check_positions(behind.slots)
        for group, cells in enumerate(behind.cells):
            first.attention.check_cells(group, cells)
        request = np.arange(behind.slots.shape[1], dtype=np.int32)
        if first.attention.angles_are_fixed:
            first.attention.rotate(behind.slots, behind.longest, request)  # it says which are too large
        else:
            for recorded, slots in zip(others, behind.slots, strict=True):
                recorded.attention.rotate(slots, behind.longest, request)
        self._behind.plan(behind)
