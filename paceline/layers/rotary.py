"""Knows the rotary position embedding (Su et al. 2021, arXiv 2104.09864): which angles turn the rows of a step."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import nn

from paceline.core.batch import Int64
from paceline.layers.placement import Placement
from paceline.layers.rotary_kinds import RotaryConfig, frequencies, rotary_kinds

Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and signed sines of a step's rows, [T, 1, rotary_dim] each; the first half of the sines is negated."""

# Up to this size the angles of every position are kept, which costs a step one look-up; beyond it (contexts of a
# million tokens, or a config.json that lies) each step computes its own.
MAX_TABLE_BYTES = 64 * 2**20
# Frequencies kept of sequences whose length changes them.
MAX_REGIMES = 256


class Rotary(nn.Module):
    """Looks up the rotations of a step's positions, once for all of its layers.

    Angles are computed in float32, or float64 for a float64 model, and their sines rounded to the model's dtype.
    """

    table: torch.Tensor | None  # [positions of regime 0, 2, 1, rotary_dim]

    def __init__(self, config: RotaryConfig, *, on: Placement) -> None:
        super().__init__()
        self.config = config
        self.dtype = on.dtype
        self.kind = rotary_kinds[config.kind]
        of_length = functools.partial(frequencies, config, dtype=on.compute_dtype, device=on.device)
        self._radians_of = functools.lru_cache(MAX_REGIMES)(lambda regime: of_length(length=regime)[0])
        radians, self.factor = of_length()
        self.radians = nn.Buffer(radians, persistent=False)
        num_positions = config.max_position_embeddings if self.depends_on_length else config.num_positions
        fits = num_positions * 2 * config.rotary_dim * on.dtype.itemsize <= MAX_TABLE_BYTES
        self.register_buffer("table", self._table(num_positions, on) if fits else None, persistent=False)

    def _table(self, num_positions: int, on: Placement) -> torch.Tensor:
        """The rows of regime 0's positions; an outline's have their shape alone."""
        if on.device.type == "meta":
            return torch.empty(num_positions, 2, 1, self.config.rotary_dim, dtype=on.dtype, device=on.device)
        return self._rows(torch.arange(num_positions, device=on.device), self.radians)

    @property
    def depends_on_length(self) -> bool:
        return self.kind.regimes is not None

    def regimes(self, lengths: Int64) -> Int64:
        """Maps sequence lengths, i64[B], to what ``forward`` needs of each."""
        return np.zeros_like(lengths) if self.kind.regimes is None else self.kind.regimes(self.config, lengths)

    def _rows(self, positions: torch.Tensor, radians: torch.Tensor) -> torch.Tensor:
        """i64[T], and radians of each row or of all -> [T, 2, 1, rotary_dim]."""
        angles = (positions[:, None] * radians)[:, None]  # [T, 1, rotary_dim / 2]
        cosine, sine = angles.cos(), angles.sin()
        rows = torch.stack((torch.cat((cosine, cosine), -1), torch.cat((-sine, sine), -1)), dim=1)
        return (rows * self.factor).to(self.dtype)

    def forward(self, positions: torch.Tensor, regimes: Int64 | None = None) -> Rotation:
        """i64[T] positions and i64[T] regimes (None: all 0) -> (cosines, signed sines), [T, 1, rotary_dim] each.

        Positions lie below ``num_positions``; in regime 0 of a kind that depends on the length, below
        ``max_position_embeddings``.
        """
        if regimes is not None and self.depends_on_length:
            distinct, of_row = np.unique(regimes, return_inverse=True)
            radians = torch.stack([self._radians_of(regime) for regime in distinct.tolist()])
            rows = self._rows(positions, radians[torch.from_numpy(of_row).to(positions.device)])
        else:
            rows = self._rows(positions, self.radians) if self.table is None else self.table[positions]
        cosine, sine = rows.unbind(1)
        return cosine, sine


def rotate(heads: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Turns channel pairs (i, i + rotary_dim / 2) of heads [T, N, head_dim] by their rows' angles; the rest stays."""
    cosine, sine = rotation
    size = cosine.shape[-1]
    if size < heads.shape[-1]:
        turned, kept = heads.split((size, heads.shape[-1] - size), dim=-1)
        return torch.cat((rotate(turned, rotation), kept), dim=-1)
    return torch.addcmul(heads * cosine, heads.roll(size // 2, dims=-1), sine)
