"""Packs a linear's weights as a native kind; knows nothing of how a checkpoint spells them."""

from __future__ import annotations

import torch

from paceline.core.errors import ConfigError
from paceline.kernels.native.packing import PackedLinear, pack
from paceline.layers.linear import Linear

FLOAT_KINDS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def pack_linear(module: Linear) -> PackedLinear:
    """The module's weights [out, in] and bias [out], packed for the native kernels.

    Quantised weights are as they are; others are packed in the dtype that they have.

    Raises:
        ConfigError: a dtype that the kernels do not know.
    """
    if module.packed is not None:
        return module.packed
    kind = FLOAT_KINDS.get(module.weight.dtype)
    if kind is None:
        dtype = str(module.weight.dtype).removeprefix("torch.")
        raise ConfigError(f"native kernels do not know {dtype}\nSet dtype to float32, bfloat16 or float16.")
    return pack(module.weight, kind, bias=module.bias)
