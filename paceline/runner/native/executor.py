"""Computes a model's passes by replaying recorded native ops; knows what a step changes in them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from paceline.attention import LayerMap
from paceline.core.batch import Batch, Behind, Int64, SampleRows
from paceline.kernels.native.linear import linear
from paceline.kernels.native.sampling import NativeSampling
from paceline.models import CausalLM
from paceline.runner.executor import Pass
from paceline.runner.native.chain import Chain
from paceline.runner.native.recorder import LOGITS, TOKENS
from paceline.runner.native.recording import Recording
from paceline.runner.native.rounds import Recordable
from paceline.runner.native.weights import pack_weights, packed_of

LEAST_ROWS = 16
MOST_CHAINED_ROWS = 256
"""In the first pass of a chain. Its buffers are its own, and a longer pass gains nothing by being chained."""


class NativeExecutor:
    """Passes of any number of rows; the ops are recorded anew only when a pass has more rows than any before."""

    def __init__(self, model: CausalLM, layers: LayerMap) -> None:
        pack_weights(model, release=False)
        self.model, self.layers = model, layers
        self._recordings: dict[tuple[int, ...], Recording] = {}
        self._chain: Chain | None = None

    def run(self, batch: Batch, taps: tuple[int, ...]) -> Pass:
        recording = self._recording(taps, {TOKENS: len(batch.token_ids), LOGITS: len(batch.logit_rows)})
        return recording.run(batch)

    def chain(self, batch: Batch, rows: SampleRows, sampling: NativeSampling, behind: Behind | None) -> Int64 | None:
        if self.model.logit_softcap is not None:  # torch's
            return None
        needed = {TOKENS: len(batch.token_ids), LOGITS: len(batch.logit_rows)}
        if needed[TOKENS] > MOST_CHAINED_ROWS:
            return None
        had, depth = self._chain, 1 if behind is None else 1 + len(behind)
        if had is None or had.call is not sampling.call or had.depth < depth or not _fits(needed, had.capacity):
            depth = max(depth, 0 if had is None else had.depth)
            capacity = _capacity(needed, {} if had is None else had.capacity)
            self._chain = had = Chain(self.model, self.layers, sampling.call, capacity, depth)
        return had.run(batch, rows, sampling.edits, behind)

    def forget(self) -> None:
        self._recordings, self._chain = {}, None

    @property
    def recordable(self) -> Recordable | None:
        return Recordable(self.model, self.layers)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.model.narrow is not None:
            hidden = linear(hidden, packed_of(self.model.narrow))
        return self.model.capped(linear(hidden, packed_of(self.model.head)))

    def _recording(self, taps: tuple[int, ...], rows: dict[str, int]) -> Recording:
        found = self._recordings.get(taps)
        if found is None or not _fits(rows, found.capacity):
            capacity = _capacity(rows, {} if found is None else found.capacity)
            self._recordings[taps] = found = Recording(self.model, self.layers, taps, capacity)
        return found


def _fits(rows: Mapping[str, int], capacity: Mapping[str, int]) -> bool:
    return all(rows[count] <= capacity[count] for count in rows)


def _capacity(rows: Mapping[str, int], had: Mapping[str, int]) -> dict[str, int]:
    return {count: max(LEAST_ROWS, had.get(count, 0), _power_of_two(rows[count])) for count in rows}


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()
