"""Knows how a checkpoint's tensor gets to its place in a model: as it is, as integers, or quantised on the way."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paceline.layers.placement import check_range
from paceline.models.checkpoint import FLOATS
from paceline.models.compressed import PackedLayout, Stored
from paceline.models.family import Part

INTEGERS = {torch.int8: "I8", torch.int32: "I32", torch.int64: "I64"}


@dataclass(frozen=True, slots=True)
class Destination:
    """A view into the model's tensors that one checkpoint tensor fills."""

    tensor: torch.Tensor
    part: Part

    @property
    def types(self) -> tuple[str, ...]:
        """What the checkpoint may store it as, in safetensors' words."""
        integer = INTEGERS.get(self.tensor.dtype)
        return tuple(FLOATS) if integer is None else (integer,)

    @property
    def shape(self) -> tuple[int, ...]:
        """As the checkpoint stores it."""
        if self.part.transposed:
            return tuple(self.tensor.t().shape)
        if self.part.repeated:
            return tuple(self.tensor.shape[1:])
        if self.part.by_unit:
            return (self.tensor.shape[:3].numel(), *self.tensor.shape[3:])
        return tuple(self.tensor.shape)

    def accepts(self, shape: tuple[int, ...]) -> bool:
        return shape == self.shape

    @property
    def num_bytes(self) -> int:
        """What it takes in memory."""
        return self.tensor.nbytes

    def fill(self, source: torch.Tensor) -> None:
        """Copies the checkpoint's tensor.

        Raises:
            ValueError: numbers that cannot be, or that the model's dtype cannot hold.
        """
        if self.part.transposed:
            source = source.t()
        if self.part.by_unit:
            source = source.view(self.tensor.shape)
        self.tensor.copy_(source)  # repeats a single row
        if self.part.plus:
            self.tensor.add_(self.part.plus)
        if source.is_floating_point():
            check_range(source, self.tensor)


@dataclass(frozen=True, slots=True)
class Scales(Destination):
    """A view of scales [out, groups]."""

    shared: bool = False
    """The checkpoint has one for the whole matrix."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (1,) if self.shared else Destination(self.tensor, self.part).shape

    def accepts(self, shape: tuple[int, ...]) -> bool:
        # Scales per tensor and per channel are stored with and without their dimension of size one.
        return self.shape in (shape, (*shape, 1))

    def fill(self, source: torch.Tensor) -> None:
        if not source.isfinite().all():
            raise ValueError("scales that are not finite")
        if self.shared:
            self.tensor.fill_(source.item())
        else:
            Destination(self.tensor, self.part).fill(source.reshape(self.shape))


@dataclass(frozen=True, slots=True)
class ExpectedShape(Destination):
    """The shape that a packed matrix says it has: compared, as it is known."""

    def fill(self, source: torch.Tensor) -> None:
        if not torch.equal(source, self.tensor):
            raise ValueError(f"says {source.tolist()}, config.json implies {self.tensor.tolist()}")


@dataclass(frozen=True, slots=True)
class Quantising(Destination):
    """A view of a matrix that is quantised when it comes; ``tensor`` has its shape and no memory."""

    layout: PackedLayout
    integers: Destination
    scales: Destination

    @property
    def num_bytes(self) -> int:
        return self.integers.num_bytes + self.scales.num_bytes

    def fill(self, source: torch.Tensor) -> None:
        stored = Stored.of(source.t() if self.part.transposed else source, self.layout)
        self.integers.fill(stored.integers)
        self.scales.fill(stored.scale)
