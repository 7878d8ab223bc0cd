"""Knows in which dtype and on which device a model's parameters are allocated, and whether a dtype holds them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where parameters lie. On the "meta" device they have shapes and no memory."""

    dtype: torch.dtype
    device: torch.device
    matrices: torch.device | None = None
    """Where the matrices of linears lie, if elsewhere: on "meta" those that are quantised while they are read."""

    @property
    def compute_dtype(self) -> torch.dtype:
        """float32, or float64 for a float64 model: what norms and angles are computed in."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def wide(self) -> Placement:
        """The same device, in ``compute_dtype``."""
        return Placement(self.compute_dtype, self.device)

    def parameter(self, *shape: int) -> nn.Parameter:
        """An uninitialised parameter that a checkpoint will fill; serving needs no gradient."""
        return nn.Parameter(torch.empty(shape, dtype=self.dtype, device=self.device), requires_grad=False)

    def matrix(self, *shape: int) -> nn.Parameter:
        """A linear's matrix, likewise."""
        return Placement(self.dtype, self.matrices or self.device).parameter(*shape)


def check_range(source: torch.Tensor, held: torch.Tensor) -> None:
    """Whether ``held``, a conversion of ``source``, which may have been repeated, kept what is finite finite.

    Raises:
        ValueError: a number is beyond what the type of ``held`` reaches; says which types reach it.
    """
    reaches = torch.finfo(source.dtype).max <= torch.finfo(held.dtype).max
    # Looking at the ends takes a twentieth of the time of looking at every number.
    if reaches or not held.numel() or all(end.isfinite() for end in held.aminmax()):
        return
    size = source.abs().to(held.device).expand_as(held)
    lost = size[held.isinf() & size.isfinite()]
    if lost.numel():
        most, limits = lost.max().item(), {dtype: torch.finfo(dtype).max for dtype in FLOATS}
        able = [str(dtype).removeprefix("torch.") for dtype, limit in limits.items() if limit >= most]
        raise ValueError(
            f"a number of size {most:.5g} is beyond {str(held.dtype).removeprefix('torch.')}, which ends at "
            f"{limits[held.dtype]:.5g}\nSet dtype to {' or '.join(able)}."
        )
