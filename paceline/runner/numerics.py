"""Knows what "exact" and "fast" numerics mean for a model with native kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from paceline.core.batch import Batch
from paceline.core.registry import Registry
from paceline.runner.executor import Executor, Pass, RoundBuilder, StepGraph

MANY_ROWS = 64
"""From so many rows on torch's matrix products may be faster than those that keep rows apart."""


@dataclass(frozen=True, slots=True)
class Numerics:
    """How passes are shared between native kernels and torch."""

    join: Callable[[Executor, Callable[[], Executor]], Executor]
    """(native executor, how to make torch's) -> what computes."""
    keeps_weights: bool
    """Torch computes too, so that its weights stay in memory beside the packed ones."""


class FastExecutor:
    """Passes of many rows by torch, whose rounding depends on how many there are; the others by native kernels."""

    def __init__(self, few: Executor, many: Executor) -> None:
        self._few, self._many = few, many

    def run(
        self, batch: Batch, taps: tuple[int, ...], inputs: torch.Tensor | None = None, layers: int | None = None
    ) -> Pass:
        executor = self._few if len(batch.token_ids) < MANY_ROWS else self._many
        return executor.run(batch, taps, inputs, layers)

    def forget(self) -> None:
        self._few.forget()
        self._many.forget()

    @property
    def obstacle(self) -> str | None:
        return "torch computes some of the passes"

    def capture(self, describe: Callable[[RoundBuilder], None], **tools: Any) -> StepGraph:  # noqa: ARG002
        raise AssertionError(self.obstacle)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._few.logits(hidden)

    def apply(self, module: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        return self._few.apply(module, *inputs)

    def takes(self, module: nn.Module) -> bool:
        return self._few.takes(module)


numerics: Registry[Numerics] = Registry("numerics")
numerics.add("exact")(Numerics(lambda native, _torch: native, keeps_weights=False))
numerics.add("fast")(Numerics(lambda native, torch: FastExecutor(native, torch()), keeps_weights=True))
