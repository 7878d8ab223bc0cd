"""Knows how the numbers of a matrix lie in panels of 64 outputs, and lays them so with torch.

Panels follow each other; in a panel, ``step`` neighbouring inputs of all 64 outputs lie together, so that a product
reads its weights in the order of memory, as one stream.
"""

from __future__ import annotations

import torch
from torch.nn import functional

WIDTH = 64
"""Outputs of a panel."""


def padded(tensor: torch.Tensor, dimension: int, unit: int) -> torch.Tensor:
    """Zeros added at the end of the dimension, up to a multiple of ``unit``."""
    missing = -tensor.shape[dimension] % unit
    sides = [0, 0] * (tensor.dim() - 1 - dimension) + [0, missing]
    return functional.pad(tensor, sides).contiguous()


def to_panels(rows: torch.Tensor, step: int) -> torch.Tensor:
    """[out, in] -> [ceil(out / 64), ceil(in / step), 64, step]."""
    filled = padded(padded(rows, 0, WIDTH), 1, step)
    panels: torch.Tensor = filled.unflatten(0, (-1, WIDTH)).unflatten(2, (-1, step)).transpose(1, 2)
    return panels.contiguous()


def from_panels(panels: torch.Tensor, out_features: int, in_features: int) -> torch.Tensor:
    """The inverse of ``to_panels``."""
    rows: torch.Tensor = panels.transpose(1, 2).flatten(2).flatten(0, 1)
    return rows[:out_features, :in_features]
