"""Computes a model's passes by calling its modules one by one; any device, any type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from paceline.attention import LayerMap, attention_backends
from paceline.core.batch import Batch
from paceline.core.interruption import check
from paceline.core.layer import PassContext
from paceline.models import CausalLM
from paceline.runner.executor import Pass, RoundBuilder, StepGraph


class TorchExecutor:
    """The modules of the model, called one by one; any device, any type."""

    obstacle: str | None = "torch computes this model"

    def __init__(self, model: CausalLM, layers: LayerMap, *, attention_backend: str, device: torch.device) -> None:
        self.model, self.device = model, device
        self.backend = attention_backends[attention_backend](layers, device)

    def run(
        self, batch: Batch, taps: tuple[int, ...], inputs: torch.Tensor | None = None, layers: int | None = None
    ) -> Pass:
        self.backend.plan(batch)
        regimes = self.model.regimes(batch.longest)
        context = PassContext(
            attend=self._attend,
            taps=taps,
            rope_length=None if regimes is None else regimes[batch.row_request],
            layers=layers,
            inputs=inputs,
        )
        token_ids, positions = (torch.from_numpy(array).to(self.device) for array in (batch.token_ids, batch.positions))
        hidden, features = self.model(token_ids, positions, context)
        rows = torch.from_numpy(batch.logit_rows).to(self.device)
        return Pass(self.logits(hidden if len(rows) == len(hidden) else hidden[rows]), hidden, features)

    def _attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        check()  # before this layer's K/V is written, so that no cell is half written
        return self.backend.attend(layer, q, k, v)

    def forget(self) -> None:
        pass

    def capture(self, describe: Callable[[RoundBuilder], None], **tools: Any) -> StepGraph:  # noqa: ARG002
        raise AssertionError(self.obstacle)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.model.logits(hidden)

    def apply(self, module: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = module(*inputs)
        return found

    @staticmethod
    def takes(module: nn.Module) -> bool:  # noqa: ARG004
        return True
