"""The kinds whose weights are small integers times scales, int8 and int4; products of int8 are summed exactly."""

from __future__ import annotations

import torch

from paceline.kernels.native.checks import check_shape
from paceline.kernels.native.packing.base import (
    GROUP_SIZES,
    SCALE_DTYPE,
    PackedLinear,
    QuantisedKind,
    kinds,
    quantised_kinds,
)
from paceline.kernels.native.packing.panels import WIDTH, from_panels, padded, to_panels

MOST_INTEGER_INPUTS = 65536
"""More products of bytes than that may not fit an int32."""


def check_quantisable(weight: torch.Tensor) -> None:
    """Raises:
    ValueError: weights that are not finite, or more inputs than exact sums allow.
    """
    if not weight.isfinite().all():
        raise ValueError("weight has numbers that are not finite\nPack it as fp32, bf16 or fp16.")
    check_inputs(weight)


def check_inputs(weight: torch.Tensor) -> None:
    if weight.shape[1] > MOST_INTEGER_INPUTS:
        raise ValueError(
            f"weight has {weight.shape[1]} inputs, more than {MOST_INTEGER_INPUTS}, which sums of products must fit\n"
            "Pack it as fp32, bf16 or fp16."
        )


class Int8Kind(QuantisedKind):
    """One scale per output, symmetric; rows of x are quantised when they come."""

    code = 3
    step = 4
    dtype = torch.int8
    grouped = False
    has_sums = True
    activation_dtype = torch.float32

    def quantise(self, weight: torch.Tensor, _group_size: int, /) -> tuple[torch.Tensor, torch.Tensor]:
        check_quantisable(weight)
        scale = weight.abs().amax(1, keepdim=True) / 127
        steps = (weight / torch.where(scale > 0, scale, 1.0)).round_().clamp_(-127, 127)
        return steps.to(torch.int8), scale

    def pack_quantised(
        self, steps: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, _group_size: int, /
    ) -> PackedLinear:
        out, inputs = steps.shape
        check_shape("scale", scale, [out, 1])
        sums = padded(steps.sum(1, dtype=torch.int32), 0, WIDTH)
        panels = to_panels(steps, self.step)
        return PackedLinear("int8", inputs, out, panels, padded(scale[:, 0], 0, WIDTH), sums, bias, 0)

    def unpack(self, packed: PackedLinear) -> torch.Tensor:
        assert packed.scale is not None
        steps = from_panels(packed.weight, packed.out_features, packed.in_features).float()
        return steps * packed.scale[: packed.out_features, None]


class Int4Kind(QuantisedKind):
    """One scale per output and group of inputs, whose number farthest from zero becomes -8; rows of x as for int8."""

    code = 4
    step = 8
    dtype = torch.uint8
    grouped = True
    has_sums = False
    activation_dtype = torch.float32

    def quantise(self, weight: torch.Tensor, group_size: int, /) -> tuple[torch.Tensor, torch.Tensor]:
        check_quantisable(weight)
        _check_group_size(group_size)
        groups = padded(weight, 1, group_size).unflatten(1, (-1, group_size))  # [out, groups, group_size]
        extreme = groups.gather(2, groups.abs().argmax(2, keepdim=True))
        scale = (extreme / -8).to(SCALE_DTYPE)
        if not scale.isfinite().all():
            raise ValueError("weight has numbers whose scales float16 cannot hold\nPack it as int8 or fp32.")
        wide = scale.float()
        steps = (groups / torch.where(wide == 0, 1.0, wide)).round_().clamp_(-8, 7).to(torch.int8)
        return steps.flatten(1)[:, : weight.shape[1]], wide[..., 0]

    def pack_quantised(
        self, steps: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, group_size: int, /
    ) -> PackedLinear:
        _check_group_size(group_size)
        out, inputs = steps.shape
        check_shape("scale", scale, [out, -(-inputs // group_size)])
        narrow = scale.to(SCALE_DTYPE)
        if not narrow.isfinite().all() or steps.min() < -8 or steps.max() > 7:
            raise ValueError("steps lie outside [-8, 7], or scale outside float16\nPack them as int8.")
        nibbles = (padded(steps, 1, group_size) + 8).to(torch.uint8)
        panels = to_panels(_joined(nibbles), self.step // 2).flatten(1).unflatten(1, (narrow.shape[1], -1))
        scales = to_panels(narrow, 1).view(torch.uint8).flatten(2)
        return PackedLinear("int4", inputs, out, torch.cat((panels, scales), 2), None, None, bias, group_size)

    def unpack(self, packed: PackedLinear) -> torch.Tensor:
        groups, inputs = packed.weight.shape[1], packed.weight.shape[1] * packed.group_size
        panels, scales = packed.weight.split((WIDTH * packed.group_size // 2, WIDTH * SCALE_DTYPE.itemsize), 2)
        joined = from_panels(panels.flatten(1).unflatten(1, (-1, WIDTH, 4)), packed.out_features, inputs // 2)
        joined = joined.unflatten(1, (-1, 4))
        nibbles = torch.stack((joined & 15, joined >> 4), 2).flatten(1)  # [out, padded inputs]
        scale = from_panels(scales.contiguous().view(SCALE_DTYPE)[..., None], packed.out_features, groups).float()
        weight: torch.Tensor = (nibbles.float() - 8).unflatten(1, (groups, -1)) * scale[:, :, None]
        return weight.flatten(1)[:, : packed.in_features]


def _check_group_size(group_size: int) -> None:
    if group_size not in GROUP_SIZES:
        raise ValueError(f"group_size is {group_size}\nChoose one of: {', '.join(map(str, GROUP_SIZES))}.")


def _joined(nibbles: torch.Tensor) -> torch.Tensor:
    """uint8[out, in] -> uint8[out, in / 2]: of eight inputs, 0-3 become the low halves of four bytes, 4-7 the high."""
    low, high = nibbles.unflatten(1, (-1, 2, 4)).unbind(2)
    joined: torch.Tensor = low | high << 4
    return joined.flatten(1)


_quantised: dict[str, QuantisedKind] = {"int8": Int8Kind(), "int4": Int4Kind()}
for _name, _each in _quantised.items():
    kinds.add(_name)(_each)
    quantised_kinds.add(_name)(_each)
