"""One module that stands by itself, recorded: what fuses features, or a head that drafts, between two passes."""

from __future__ import annotations

import torch
from torch import nn

from paceline.runner.native.lowering import modules
from paceline.runner.native.recorder import TOKENS, Recorder


class RecordedModule:
    """The ops of a module over up to ``capacity`` rows."""

    def __init__(self, module: nn.Module, widths: tuple[int, ...], capacity: int) -> None:
        """
        Raises:
            TypeError: the module has no native form.
        """
        self.capacity = capacity
        recorder = Recorder({TOKENS: capacity})
        self._inputs = [torch.zeros(capacity, width) for width in widths]
        self._output = modules.of(module)(module, recorder, *self._inputs)
        self._program = recorder.finish()

    def run(self, *inputs: torch.Tensor) -> torch.Tensor:
        """f32[T, in] each -> f32[T, out]; valid until the next call."""
        count = len(inputs[0])
        for buffer, rows in zip(self._inputs, inputs, strict=True):
            buffer[:count] = rows
        self._program.run({TOKENS: count})
        return self._output[:count]
