"""Computes a model's passes by replaying recorded native ops; knows what a step changes in them."""

from __future__ import annotations

import torch

from paceline.attention import LayerMap
from paceline.core.batch import Batch
from paceline.kernels.native.linear import linear
from paceline.models import CausalLM
from paceline.runner.executor import Pass
from paceline.runner.native.recorder import LOGITS, TOKENS
from paceline.runner.native.recording import Recording
from paceline.runner.native.weights import pack_weights, packed_of

LEAST_ROWS = 16


class NativeExecutor:
    """Passes of any number of rows; the ops are recorded anew only when a pass has more rows than any before."""

    def __init__(self, model: CausalLM, layers: LayerMap) -> None:
        pack_weights(model, release=False)
        self.model, self.layers = model, layers
        self._recordings: dict[tuple[int, ...], Recording] = {}

    def run(self, batch: Batch, taps: tuple[int, ...]) -> Pass:
        recording = self._recording(taps, {TOKENS: len(batch.token_ids), LOGITS: len(batch.logit_rows)})
        return recording.run(batch)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.model.narrow is not None:
            hidden = linear(hidden, packed_of(self.model.narrow))
        return self.model.capped(linear(hidden, packed_of(self.model.head)))

    def _recording(self, taps: tuple[int, ...], rows: dict[str, int]) -> Recording:
        found = self._recordings.get(taps)
        if found is None or any(rows[count] > found.capacity[count] for count in rows):
            had = {} if found is None else found.capacity
            needed = {count: max(LEAST_ROWS, had.get(count, 0), _power_of_two(rows[count])) for count in rows}
            self._recordings[taps] = found = Recording(self.model, self.layers, taps, needed)
        return found


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()
