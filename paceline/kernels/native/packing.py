"""Knows how a matrix is packed for each kind of native linear, and what the packed one stands for; computes in torch.

Panels of 64 outputs follow each other; in a panel, ``step`` neighbouring inputs of all 64 outputs lie together, so that
a product reads its weights in the order of memory, as one stream.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from paceline.core.registry import Registry
from paceline.kernels.native.checks import check_shape, check_tensor

WIDTH = 64
"""Outputs of a panel."""
GROUP_SIZES = (32, 64, 128)
SCALE_DTYPE = torch.float16
"""Of int4's scales."""
MOST_INTEGER_INPUTS = 65536
"""More products of bytes than that may not fit an int32."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedLinear:
    """A matrix [out, in] packed as ``kind``, by ``pack`` alone; nothing in it may be changed."""

    kind: str
    in_features: int
    out_features: int
    weight: torch.Tensor
    """[ceil(out / 64), inputs / step, 64, step]; padded with zeros.

    int4: [ceil(out / 64), groups, bytes], of each group its weights, two nibbles to a byte, and 64 scales, float16.
    """
    scale: torch.Tensor | None
    """int8: float32[ceil(out / 64) * 64]."""
    sums: torch.Tensor | None
    """int8: int32[ceil(out / 64) * 64], of each output's quantised weights."""
    bias: torch.Tensor | None
    """float32[ceil(out / 64) * 64]"""
    group_size: int
    """Inputs that share a scale; 0 for kinds without groups."""

    @property
    def num_bytes(self) -> int:
        return sum(part.nbytes for part in (self.weight, self.scale, self.sums, self.bias) if part is not None)

    def __post_init__(self) -> None:
        """Raises:
        TypeError, ValueError: parts that do not fit each other, which would let a kernel read beside them.
        """
        kind = kinds[self.kind]
        sizes = GROUP_SIZES if kind.grouped else (0,)
        if min(self.in_features, self.out_features) < 1 or self.group_size not in sizes:
            raise ValueError(
                f"{self.in_features} inputs, {self.out_features} outputs and groups of {self.group_size} "
                f"make no matrix of kind {self.kind}\nMake it with pack()."
            )
        weights = weight_shape(kind, self.in_features, self.out_features, self.group_size)
        outputs = [weights[0] * WIDTH]
        _check_part("weight", self.weight, kind.dtype, weights)
        _check_part("scale", self.scale, torch.float32 if kind.has_sums else None, outputs)
        _check_part("sums", self.sums, torch.int32 if kind.has_sums else None, outputs)
        if self.bias is not None:
            _check_part("bias", self.bias, torch.float32, outputs)


def weight_shape(kind: Kind, in_features: int, out_features: int, group_size: int) -> list[int]:
    """Of the packed weights of a matrix [out, in]."""
    panels = -(-out_features // WIDTH)
    if kind.grouped:
        return [panels, -(-in_features // group_size), _group_bytes(group_size)]
    return [panels, -(-in_features // kind.step), WIDTH, kind.step]


def packed_bytes(kind: str, in_features: int, out_features: int, *, bias: bool) -> int:
    """Of a matrix of a kind that is not quantised, with its bias."""
    shape = weight_shape(kinds[kind], in_features, out_features, 0)
    return math.prod(shape) * kinds[kind].dtype.itemsize + (shape[0] * WIDTH * 4 if bias else 0)


def _group_bytes(group_size: int) -> int:
    """Nibbles and scales of all outputs of a panel."""
    return WIDTH * (group_size // 2 + SCALE_DTYPE.itemsize)


def _check_part(name: str, part: torch.Tensor | None, dtype: torch.dtype | None, shape: list[int]) -> None:
    if dtype is None:
        if part is not None:
            raise ValueError(f"{name} is not known to this kind\nMake the matrix with pack().")
        return
    check_shape(name, check_tensor(name, part, dtypes=[dtype]), shape)
    assert part is not None
    if not part.is_contiguous():
        raise ValueError(f"{name} has strides {part.stride()}\nMake the matrix with pack().")


class Kind(Protocol):
    """How one kind is packed; the properties say of what the parts are made."""

    @property
    def code(self) -> int:
        """``paceline_kind``."""
        ...

    @property
    def step(self) -> int:
        """Neighbouring inputs that lie together."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the packed weights."""
        ...

    @property
    def grouped(self) -> bool:
        """Weights are nibbles, and there is a scale per output and group of inputs among them."""
        ...

    @property
    def has_sums(self) -> bool:
        """There is a scale per output and a sum of its weights beside them."""
        ...

    @property
    def activation_dtype(self) -> torch.dtype:
        """What the rows of x are rounded to, before any quantisation."""
        ...

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None, group_size: int, /) -> PackedLinear:
        """float32[out, in], float32[padded out]."""
        ...

    def unpack(self, packed: PackedLinear) -> torch.Tensor:
        """What the packed weights stand for, float32[out, in]."""
        ...


class QuantisedKind(Kind, Protocol):
    """A kind whose weights are small integers times scales."""

    def quantise(self, weight: torch.Tensor, group_size: int, /) -> tuple[torch.Tensor, torch.Tensor]:
        """float32[out, in] -> integers, int8[out, in], and scales, float32[out, groups]."""
        ...

    def pack_quantised(
        self, steps: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, group_size: int, /
    ) -> PackedLinear:
        """int8[out, in], float32[out, groups], float32[padded out]."""
        ...


kinds: Registry[Kind] = Registry("kind of linear")
quantised_kinds: Registry[QuantisedKind] = Registry("kind of quantised linear")


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
    _check_inputs(steps)
    return packer.pack_quantised(steps, scale, _padded_bias(bias, steps.shape[0]), group_size)


def _check_matrix(name: str, matrix: torch.Tensor) -> None:
    check_shape(name, matrix, [None, None])
    if not matrix.numel():
        raise ValueError(f"{name} has shape {list(matrix.shape)}, which holds nothing")


def _padded_bias(bias: torch.Tensor | None, out_features: int) -> torch.Tensor | None:
    if bias is None:
        return None
    check_shape("bias", check_tensor("bias", bias), [out_features])
    return _padded(bias.detach().float(), 0, WIDTH)


def unpack(packed: PackedLinear) -> torch.Tensor:
    """What the packed weights stand for, float32[out, in]."""
    return kinds[packed.kind].unpack(packed)


def _padded(tensor: torch.Tensor, dimension: int, unit: int) -> torch.Tensor:
    """Zeros added at the end of the dimension, up to a multiple of ``unit``."""
    missing = -tensor.shape[dimension] % unit
    sides = [0, 0] * (tensor.dim() - 1 - dimension) + [0, missing]
    return functional.pad(tensor, sides).contiguous()


def to_panels(rows: torch.Tensor, step: int) -> torch.Tensor:
    """[out, in] -> [ceil(out / 64), ceil(in / step), 64, step]."""
    padded = _padded(_padded(rows, 0, WIDTH), 1, step)
    panels: torch.Tensor = padded.unflatten(0, (-1, WIDTH)).unflatten(2, (-1, step)).transpose(1, 2)
    return panels.contiguous()


def from_panels(panels: torch.Tensor, out_features: int, in_features: int) -> torch.Tensor:
    """The inverse of ``to_panels``."""
    rows: torch.Tensor = panels.transpose(1, 2).flatten(2).flatten(0, 1)
    return rows[:out_features, :in_features]


@dataclass(frozen=True, slots=True)
class FloatKind:
    """Weights as they are, in ``dtype``."""

    name: str
    code: int
    step: int
    dtype: torch.dtype
    activation_dtype: torch.dtype
    grouped: bool = False
    has_sums: bool = False

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None, _group_size: int, /) -> PackedLinear:
        out, inputs = weight.shape
        return PackedLinear(self.name, inputs, out, to_panels(weight.to(self.dtype), self.step), None, None, bias, 0)

    def unpack(self, packed: PackedLinear) -> torch.Tensor:
        return from_panels(packed.weight, packed.out_features, packed.in_features).float()


for _kind in (
    FloatKind("fp32", 0, 1, torch.float32, torch.float32),
    FloatKind("bf16", 1, 2, torch.bfloat16, torch.bfloat16),
    FloatKind("fp16", 2, 1, torch.float16, torch.float32),
):
    kinds.add(_kind.name)(_kind)


def check_quantisable(weight: torch.Tensor) -> None:
    """Raises:
    ValueError: weights that are not finite, or more inputs than exact sums allow.
    """
    if not weight.isfinite().all():
        raise ValueError("weight has numbers that are not finite\nPack it as fp32, bf16 or fp16.")
    _check_inputs(weight)


def _check_inputs(weight: torch.Tensor) -> None:
    if weight.shape[1] > MOST_INTEGER_INPUTS:
        raise ValueError(
            f"weight has {weight.shape[1]} inputs, more than {MOST_INTEGER_INPUTS}, which sums of products must fit\n"
            "Pack it as fp32, bf16 or fp16."
        )


class Int8Kind:
    """One scale per output, symmetric; rows of x are quantised when they come."""

    code = 3
    step = 4
    dtype = torch.int8
    grouped = False
    has_sums = True
    activation_dtype = torch.float32

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None, group_size: int, /) -> PackedLinear:
        steps, scale = self.quantise(weight, group_size)
        return self.pack_quantised(steps, scale, bias, group_size)

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
        sums = _padded(steps.sum(1, dtype=torch.int32), 0, WIDTH)
        panels = to_panels(steps, self.step)
        return PackedLinear("int8", inputs, out, panels, _padded(scale[:, 0], 0, WIDTH), sums, bias, 0)

    def unpack(self, packed: PackedLinear) -> torch.Tensor:
        assert packed.scale is not None
        steps = from_panels(packed.weight, packed.out_features, packed.in_features).float()
        return steps * packed.scale[: packed.out_features, None]


class Int4Kind:
    """One scale per output and group of inputs, whose number farthest from zero becomes -8; rows of x as for int8."""

    code = 4
    step = 8
    dtype = torch.uint8
    grouped = True
    has_sums = False
    activation_dtype = torch.float32

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None, group_size: int, /) -> PackedLinear:
        steps, scale = self.quantise(weight, group_size)
        return self.pack_quantised(steps, scale, bias, group_size)

    def quantise(self, weight: torch.Tensor, group_size: int, /) -> tuple[torch.Tensor, torch.Tensor]:
        check_quantisable(weight)
        _check_group_size(group_size)
        groups = _padded(weight, 1, group_size).unflatten(1, (-1, group_size))  # [out, groups, group_size]
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
        nibbles = (_padded(steps, 1, group_size) + 8).to(torch.uint8)
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
