"""Several passes in one native call: what is sampled of a pass is fed to the next one.

Knows how passes and samplings are recorded one behind another; not which of the tokens will stand.
"""

from __future__ import annotations

import numpy as np

from paceline.attention import LayerMap
from paceline.core.batch import Batch, Behind, Int64, SampleRows
from paceline.kernels.native.sampling import Edits, SampleCall
from paceline.kernels.native.structures import Code, Sample
from paceline.models import CausalLM
from paceline.runner.native.recorded_pass import RecordedPass
from paceline.runner.native.recorder import LOGITS, TOKENS, Recorder


class Chain:
    """Up to ``depth`` passes: the first over any rows, each other one over a row for every row that was sampled."""

    def __init__(
        self, model: CausalLM, layers: LayerMap, call: SampleCall, capacity: dict[str, int], depth: int
    ) -> None:
        self.call, self.capacity, self.depth = call, capacity, depth
        rows = capacity[LOGITS]
        self._seats, self._row_start = np.zeros(rows, dtype=np.int32), np.arange(rows + 1, dtype=np.int32)
        self._depths = np.arange(depth)[:, None]
        self._output_index, self._tokens = (np.zeros((depth, rows), dtype=np.int64) for _ in range(2))
        self._ends: list[int] = []
        """Of each pass: how many ops there are up to its sampling."""
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
        recorded = RecordedPass(model, layers, recorder, token_ids=self._tokens[number - 1] if number else None)
        arrays = self._seats, self._output_index[number], self._tokens[number]
        sample = self.call.arguments(recorded.logits, *arrays)
        self._ends.append(recorder.add(Code.SAMPLE, sample, self.call, *arrays, count=LOGITS) + 1)
        recorded.give(recorder)
        self._passes.append(recorded)

    def run(self, batch: Batch, rows: SampleRows, edits: Edits | None, behind: Behind | None) -> Int64:
        """int64[1 + N, R]: what is sampled of each pass, as ``SampleCall`` does; a chain goes on behind a -1.

        ``edits`` are those of the first pass's rows.

        Raises:
            IndexError: a token, a position, a page or a cell that there is not.
            ValueError: edits that do not fit.
        """
        number, depth = len(rows), 1 if behind is None else 1 + len(behind)
        first, *others = self._passes[:depth]
        first.plan(batch)
        if behind is not None:
            for place, recorded in enumerate(others):
                recorded.plan_behind(behind, place, self._row_start[: number + 1])
        if edits is not None or self._edits is not None:
            first_sample = self._program.structure(self._ends[0] - 1, Sample)
            self._edits = self.call.set_edits(first_sample, edits, number)
        self._seats[:number] = rows.seats
        np.add(rows.output_index, self._depths[:depth], out=self._output_index[:depth, :number])
        self._program.run({TOKENS: len(batch.token_ids), LOGITS: number}, self._ends[depth - 1])
        return self._tokens[:depth, :number].copy()
