"""Knows how the residual stream is kept while a model is recorded: what joins it waits for the norm that reads it."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from paceline.kernels.native.structures import Code
from paceline.layers.norm import LayerNorm, RMSNorm
from paceline.runner.native.by_type import ByType
from paceline.runner.native.recorder import Recorder


class Stream:
    """The residual stream [T, D]; a summand is added by the op that norms it, or when it is needed."""

    def __init__(self, recorder: Recorder, rows: torch.Tensor) -> None:
        self.recorder = recorder
        self._rows = rows
        self._summand: torch.Tensor | None = None

    def add(self, summand: torch.Tensor) -> None:
        """Takes ``summand`` over, buffer and all."""
        self.rows()
        self._summand = summand

    def rows(self) -> torch.Tensor:
        """All that was added, summed up."""
        if self._summand is not None:
            self.recorder.gather(self._summand, self._rows, add=True)
            self.recorder.give(self._summand)
            self._summand = None
        return self._rows

    def copied(self) -> torch.Tensor:
        """``rows`` in a new buffer."""
        copy = self.recorder.take(self._rows.shape[1])
        self.recorder.gather(self.rows(), copy)
        return copy

    def normed(self, norm: nn.Module) -> torch.Tensor:
        """The norm of the stream, in a new buffer."""
        out = self.recorder.take(self._rows.shape[1])
        if self._summand is None:
            norms.of(norm)(norm, self.recorder, self._rows, out, None)
        else:
            norms.of(norm)(norm, self.recorder, self._summand, out, self._rows)
            self.recorder.give(self._summand)
            self._summand = None
        return out

    def replace(self, rows: torch.Tensor) -> None:
        """The stream becomes ``rows``, whose buffer it takes over."""
        self.recorder.give(self._rows)
        self._rows = rows


class RecordNorm(Protocol):
    def __call__(
        self, norm: Any, recorder: Recorder, x: torch.Tensor, out: torch.Tensor, residual: torch.Tensor | None, /
    ) -> None:
        """``out`` = norm of x, or of residual + x, which the residual becomes. ``out`` may be x."""
        ...


norms: ByType[RecordNorm] = ByType()


@norms.add(RMSNorm)
def _rms_norm(
    norm: RMSNorm, recorder: Recorder, x: torch.Tensor, out: torch.Tensor, residual: torch.Tensor | None
) -> None:
    weight = norm.weight.detach().float()
    recorder.norm(Code.RMS_NORM, x, out, weight=weight, bias=None, epsilon=norm.epsilon, residual=residual)


@norms.add(LayerNorm)
def _layer_norm(
    norm: LayerNorm, recorder: Recorder, x: torch.Tensor, out: torch.Tensor, residual: torch.Tensor | None
) -> None:
    weight, bias = norm.weight.detach().float(), norm.bias.detach().float()
    recorder.norm(Code.LAYER_NORM, x, out, weight=weight, bias=bias, epsilon=norm.epsilon, residual=residual)


@norms.add(nn.Identity)
def _identity(
    _norm: nn.Identity, recorder: Recorder, x: torch.Tensor, out: torch.Tensor, residual: torch.Tensor | None
) -> None:
    if residual is None:
        recorder.gather(x, out)
    else:
        recorder.gather(x, residual, add=True)
        recorder.gather(residual, out)
