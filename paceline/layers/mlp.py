"""Knows the feed-forward networks and their activations, under the names that checkpoints use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from paceline.core.registry import Registry
from paceline.layers.linear import Linear
from paceline.layers.placement import Placement

Activation = Callable[[torch.Tensor], torch.Tensor]

activations: Registry[Activation] = Registry("activation")
activations.add("silu")(functional.silu)
activations.add("relu")(functional.relu)
activations.add("gelu")(functional.gelu)
for _name in ("gelu_new", "gelu_pytorch_tanh"):
    activations.add(_name)(partial(functional.gelu, approximate="tanh"))


class GatedMLP(nn.Module):
    """``down(activation(gate x) * up x)`` (Shazeer 2020, arXiv 2002.05202), gate and up in one product."""

    def __init__(self, hidden: int, intermediate: int, *, activation: str, bias: bool, on: Placement) -> None:
        super().__init__()
        self.gate_up = Linear.empty(hidden, (intermediate, intermediate), bias=bias, on=on)
        self.down = Linear.empty(intermediate, (hidden,), bias=bias, on=on)
        self.activation = activations[activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, D] -> [T, D]."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        y: torch.Tensor = self.down(self.activation(gate) * up)
        return y


class MLP(nn.Module):
    """``down(activation(up x))``."""

    def __init__(self, hidden: int, intermediate: int, *, activation: str, bias: bool, on: Placement) -> None:
        super().__init__()
        self.up = Linear.empty(hidden, (intermediate,), bias=bias, on=on)
        self.down = Linear.empty(intermediate, (hidden,), bias=bias, on=on)
        self.activation = activations[activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, D] -> [T, D]."""
        y: torch.Tensor = self.down(self.activation(self.up(x)))
        return y
