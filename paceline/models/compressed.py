"""Knows how a quantised matrix lies in a checkpoint (compressed-tensors' layouts), and how it becomes a packed one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from paceline.kernels.native.packing import GROUP_SIZES, WIDTH, PackedLinear, pack_quantised, quantise

BITS = {"int8": 8, "int4": 4}
PACKED_BITS = 32
"""Integers are packed into int32, the first into the lowest bits, each with half its range added."""


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """How the integers and scales of a matrix [out, in] are stored.

    ``in_words``: ``weight_packed`` int32[out, in * bits / 32]; else ``weight`` int8[out, in]. ``weight_scale`` is
    [out, in / group_size], or [out, 1] where ``group_size`` is 0; or [1] if the matrix ``shares_scale``.
    """

    kind: str
    """Of native linear."""
    group_size: int = 0
    in_words: bool | None = None
    """None: as is usual for the kind."""
    shares_scale: bool = False

    @property
    def packs(self) -> bool:
        return self.kind == "int4" if self.in_words is None else self.in_words

    @property
    def integers(self) -> str:
        """The name of the tensor of integers."""
        return "weight_packed" if self.packs else "weight"

    def integer_columns(self, inputs: int) -> int:
        return -(-inputs * BITS[self.kind] // PACKED_BITS) if self.packs else inputs

    def scale_columns(self, inputs: int) -> int:
        return inputs // self.group_size if self.group_size else 1

    def packed_bytes(self, out_features: int, in_features: int) -> int:
        """What the packed matrix takes: its integers, and its scales with the sum of an int8 row."""
        rows, size = -(-out_features // WIDTH) * WIDTH, self.kernel_group_size
        if self.kind == "int8":
            return rows * (-(-in_features // 4) * 4 + 8)
        groups = -(-in_features // size)
        return rows * groups * (size // 2 + 2)

    @property
    def known(self) -> bool:
        """Whether kernels can have such groups."""
        return not self.group_size if self.kind == "int8" else not self.group_size % GROUP_SIZES[0]

    @property
    def kernel_group_size(self) -> int:
        """Kernels know a few group sizes; any multiple of one is that one with scales that repeat."""
        whole = self.group_size or GROUP_SIZES[-1]
        return next(size for size in reversed(GROUP_SIZES) if whole % size == 0)


@dataclass(frozen=True, slots=True)
class Stored:
    """The integers and scales of a matrix, laid out as in a checkpoint."""

    layout: PackedLayout
    integers: torch.Tensor
    scale: torch.Tensor
    """float32[out, groups]"""
    in_features: int

    @classmethod
    def empty(cls, layout: PackedLayout, shape: Sequence[int], device: torch.device) -> Stored:
        """Room for a matrix [out, in]."""
        out_features, in_features = shape
        dtype = torch.int32 if layout.packs else torch.int8
        return cls(
            layout,
            torch.empty(out_features, layout.integer_columns(in_features), dtype=dtype, device=device),
            torch.empty(out_features, layout.scale_columns(in_features), dtype=torch.float32, device=device),
            in_features,
        )

    @classmethod
    def of(cls, weight: torch.Tensor, layout: PackedLayout) -> Stored:
        """Quantises weight [out, in]; a row's result depends on that row alone.

        Raises:
            ValueError: numbers that are not finite, or too large.
        """
        steps, scale = quantise(weight.float(), layout.kind, group_size=layout.group_size or GROUP_SIZES[0])
        return cls(layout, to_words(steps, BITS[layout.kind]) if layout.packs else steps, scale, weight.shape[1])

    def dequantised(self) -> torch.Tensor:
        """float32[out, in]"""
        steps = self.integers
        if self.layout.packs:
            steps = from_words(steps, BITS[self.layout.kind], self.in_features)
        return steps.float() * self.scale.repeat_interleave(self.layout.group_size or self.in_features, 1)

    def pack(self, bias: torch.Tensor | None) -> PackedLinear:
        """For the native kernels.

        Raises:
            ValueError: integers or scales that they cannot hold.
        """
        bits, size = BITS[self.layout.kind], self.layout.kernel_group_size
        steps = from_words(self.integers, bits, self.in_features) if self.layout.packs else self.integers
        scale = self.scale
        if self.layout.kind == "int4":
            repeats = (self.layout.group_size or -(-self.in_features // size) * size) // size
            scale = scale.repeat_interleave(repeats, 1)
        return pack_quantised(steps, scale, self.layout.kind, bias=bias, group_size=size)


def to_words(steps: torch.Tensor, bits: int) -> torch.Tensor:
    """int8[out, in] -> int32[out, ceil(in * bits / 32)], for 4 or 8 bits."""
    missing = -steps.shape[1] % (PACKED_BITS // bits)
    codes = (torch.nn.functional.pad(steps, (0, missing)).to(torch.int16) + (1 << bits - 1)).to(torch.uint8)
    if missing:
        codes[:, -missing:] = 0
    if bits == 4:
        low, high = codes.unflatten(1, (-1, 2)).unbind(2)
        codes = low | high << 4
    return codes.contiguous().view(torch.int32)


def from_words(words: torch.Tensor, bits: int, in_features: int) -> torch.Tensor:
    """The inverse of ``to_words``."""
    codes = words.contiguous().view(torch.uint8)
    if bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), 2).flatten(1)
    steps: torch.Tensor = (codes[:, :in_features].to(torch.int16) - (1 << bits - 1)).to(torch.int8)
    return steps
