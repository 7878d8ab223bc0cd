"""Packs matrices as any of the kinds, after checks, and says what packed ones stand for; computes in torch."""

from __future__ import annotations

import torch

from paceline.kernels.native.checks import check_shape, check_tensor
from paceline.kernels.native.packing.base import GROUP_SIZES, PackedLinear, kinds, quantised_kinds
from paceline.kernels.native.packing.integers import check_inputs
from paceline.kernels.native.packing.panels import WIDTH, padded


def pack(
    weight: torch.Tensor, kind: str, *, bias: torch.Tensor | None = None, group_size: int = GROUP_SIZES[0]
) -> PackedLinear:
    """Packs weight [out, in] and bias [out]; ``group_size`` inputs share a scale where the kind has groups.

    Raises:
        ConfigError: an unknown kind.
        TypeError, ValueError: tensors or sizes that cannot be packed.
    """
    packer = kinds[kind]
    _check_matrix("weight", check_tensor("weight", weight))
    return packer.pack(weight.detach().float(), _padded_bias(bias, weight.shape[0]), group_size)


def quantise(weight: torch.Tensor, kind: str, *, group_size: int = GROUP_SIZES[0]) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``pack`` packs of weight [out, in]: integers, int8[out, in], and their scales, float32[out, groups].

    Raises:
        ConfigError: an unknown kind.
        TypeError, ValueError: weights or sizes that cannot be quantised.
    """
    _check_matrix("weight", check_tensor("weight", weight))
    return quantised_kinds[kind].quantise(weight.detach().float(), group_size)


def pack_quantised(
    steps: torch.Tensor,
    scale: torch.Tensor,
    kind: str,
    *,
    bias: torch.Tensor | None = None,
    group_size: int = GROUP_SIZES[0],
) -> PackedLinear:
    """Packs integers int8[out, in] and scales float32[out, groups] as they are; int8 has a single group.

    int4 holds its scales in float16: those of another checkpoint are rounded to that.

    Raises:
        ConfigError: an unknown kind.
        TypeError, ValueError: integers or scales that the kind cannot hold.
    """
    packer = quantised_kinds[kind]
    _check_matrix("steps", check_tensor("steps", steps, dtypes=[torch.int8]))
    check_tensor("scale", scale, dtypes=[torch.float32])
    if not scale.isfinite().all():
        raise ValueError("scale has numbers that are not finite\nUse another copy of the weights.")
    check_inputs(steps)
    return packer.pack_quantised(steps, scale, _padded_bias(bias, steps.shape[0]), group_size)


def unpack(packed: PackedLinear) -> torch.Tensor:
    """What the packed weights stand for, float32[out, in]."""
    return kinds[packed.kind].unpack(packed)


def _check_matrix(name: str, matrix: torch.Tensor) -> None:
    check_shape(name, matrix, [None, None])
    if not matrix.numel():
        raise ValueError(f"{name} has shape {list(matrix.shape)}, which holds nothing")


def _padded_bias(bias: torch.Tensor | None, out_features: int) -> torch.Tensor | None:
    if bias is None:
        return None
    check_shape("bias", check_tensor("bias", bias), [out_features])
    return padded(bias.detach().float(), 0, WIDTH)
