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
"""Those of transformers that have no weights of their own (as ``prelu`` and ``xielu`` have)."""
NAMES: dict[Activation, tuple[str, ...]] = {
    functional.silu: ("silu", "swish"),
    functional.relu: ("relu",),
    functional.gelu: ("gelu", "gelu_python"),
    partial(functional.gelu, approximate="tanh"): (
        "gelu_new",
        "gelu_fast",
        "gelu_accurate",
        "gelu_pytorch_tanh",
        "gelu_python_tanh",
    ),
    lambda x: functional.gelu(x).clamp(-10, 10): ("gelu_10",),
    lambda x: x * torch.sigmoid(1.702 * x): ("quick_gelu",),
    lambda x: functional.relu(x).square(): ("relu2",),
    functional.relu6: ("relu6",),
    functional.leaky_relu: ("leaky_relu",),
    functional.hardswish: ("hardswish",),
    functional.mish: ("mish",),
    torch.sigmoid: ("sigmoid",),
    torch.tanh: ("tanh",),
    lambda x: torch.erf((x - 0.707107) / (0.282095 * 2**0.5)).add(1) / 2: ("laplace",),
    lambda x: functional.softplus(x).sqrt(): ("sqrtsoftplus",),
    lambda x: x: ("linear",),
}
for _function, _names in NAMES.items():
    for _name in _names:
        activations.add(_name)(_function)


class GatedMLP(nn.Module):
    """``down(activation(gate x) * up x)`` (Shazeer 2020, arXiv 2002.05202), gate and up in one product."""

    def __init__(self, hidden: int, intermediate: int, *, activation: str, bias: bool, on: Placement) -> None:
        super().__init__()
        self.gate_up = Linear.empty(hidden, (intermediate, intermediate), bias=bias, on=on)
        self.down = Linear.empty(intermediate, (hidden,), bias=bias, on=on)
        self.activation_name = activation
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
        self.activation_name = activation
        self.activation = activations[activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, D] -> [T, D]."""
        y: torch.Tensor = self.down(self.activation(self.up(x)))
        return y
