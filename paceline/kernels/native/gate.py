"""Knows how native activations are called; ``paceline.kernels.reference.activate`` is the same in torch."""

from __future__ import annotations

import torch

from paceline.core.registry import Registry
from paceline.kernels.native import region, structures
from paceline.kernels.native.checks import check_rows, check_same_or_apart, output
from paceline.kernels.native.structures import Code, Matrix

activations: Registry[int] = Registry("activation")
"""Name that checkpoints use -> ``paceline_activation``."""
NAMES = (
    ("silu", "swish"),
    ("gelu", "gelu_python"),
    ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"),
    ("relu",),
)
"""By code, what checkpoints call it."""
for _code, _names in enumerate(NAMES):
    for _name in _names:
        activations.add(_name)(_code)


def activate(
    x: torch.Tensor, activation: str, *, up: torch.Tensor | None = None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """``activation(x) * up``, or ``activation(x)`` without ``up``; rows [T, D], which may be halves of wider ones.

    Computed in float32 and rounded once, the product included. ``out`` may be x or ``up`` itself.

    Raises:
        ConfigError: an unknown activation.
        TypeError, ValueError: tensors that do not fit.
        NativeUnavailableError: there are no native kernels.
    """
    code = activations[activation]
    rows, size = check_rows("x", x, [None, None]).shape
    if up is not None:
        check_rows("up", up, [rows, size])
    y = output("out", out, x, (rows, size))
    check_same_or_apart("out", y, x=x, up=up)
    region.run([(Code.GATE, structures.GateArgs(*map(Matrix.of, (x, up, y)), rows, size, code))])
    return y
