"""Knows what a packed matrix is made of, and what a kind of native linear has to say; lists the kinds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from paceline.core.registry import Registry
from paceline.kernels.native.checks import check_shape, check_tensor
from paceline.kernels.native.packing.panels import WIDTH

GROUP_SIZES = (32, 64, 128)
SCALE_DTYPE = torch.float16
"""Of int4's scales."""


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

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None, group_size: int, /) -> PackedLinear:
        steps, scale = self.quantise(weight, group_size)
        return self.pack_quantised(steps, scale, bias, group_size)

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
