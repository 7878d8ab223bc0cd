"""Computes a model's passes by replaying recorded native ops; knows what a step changes in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from paceline.attention import LayerMap
from paceline.core.batch import Batch
from paceline.kernels.native.linear import linear
from paceline.models import CausalLM
from paceline.runner.executor import Pass, RoundBuilder, StepGraph, power_of_two
from paceline.runner.native.buffer_pool import BufferPool
from paceline.runner.native.graph import NativeGraph
from paceline.runner.native.lowering import modules
from paceline.runner.native.recorded_module import RecordedModule
from paceline.runner.native.recorder import LOGITS, TOKENS
from paceline.runner.native.recording import Recording
from paceline.runner.native.weights import pack_weights, packed_of

LEAST_ROWS = 16
PassKind = tuple[tuple[int, ...], int | None]
"""Layers that are tapped; how many are computed."""


class NativeExecutor:
    """Passes of any number of rows; the ops are recorded anew only when a pass has more rows than any before."""

    def __init__(self, model: CausalLM, layers: LayerMap) -> None:
        pack_weights(model, release=False)
        self.model, self.layers = model, layers
        self._pool = BufferPool()
        """Of graphs."""
        self._recordings: dict[PassKind, Recording] = {}
        self._modules: dict[nn.Module, RecordedModule] = {}

    def run(
        self, batch: Batch, taps: tuple[int, ...], inputs: torch.Tensor | None = None, layers: int | None = None
    ) -> Pass:
        recording = self._recording((taps, layers), {TOKENS: len(batch.token_ids), LOGITS: len(batch.logit_rows)})
        return recording.run(batch, inputs)

    def forget(self) -> None:
        self._recordings, self._modules = {}, {}

    @property
    def obstacle(self) -> str | None:
        return None if self.model.logit_softcap is None else "logits have a soft cap"  # which torch computes

    def capture(self, describe: Callable[[RoundBuilder], None], **tools: Any) -> StepGraph:
        return NativeGraph(describe, **tools, pool=self._pool)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.model.narrow is not None:
            hidden = linear(hidden, packed_of(self.model.narrow))
        return self.model.expanded(self.model.capped(linear(hidden, packed_of(self.model.head))))

    def apply(self, module: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        rows = len(inputs[0])
        found = self._modules.get(module)
        if found is None or found.capacity < rows:
            widths = tuple(some.shape[1] for some in inputs)
            self._modules[module] = found = RecordedModule(module, widths, max(LEAST_ROWS, power_of_two(rows)))
        return found.run(*inputs)

    @staticmethod
    def takes(module: nn.Module) -> bool:
        return module in modules

    def _recording(self, kind: PassKind, rows: dict[str, int]) -> Recording:
        found = self._recordings.get(kind)
        if found is None or not _fits(rows, found.capacity):
            capacity = _capacity(rows, {} if found is None else found.capacity)
            self._recordings[kind] = found = Recording(self.model, self.layers, *kind, capacity)
        return found


def _fits(rows: Mapping[str, int], capacity: Mapping[str, int]) -> bool:
    return all(rows[count] <= capacity[count] for count in rows)


def _capacity(rows: Mapping[str, int], had: Mapping[str, int]) -> dict[str, int]:
    return {count: max(LEAST_ROWS, had.get(count, 0), power_of_two(rows[count])) for count in rows}
