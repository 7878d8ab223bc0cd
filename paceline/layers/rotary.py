"""Knows the rotary position embedding (Su et al. 2021, arXiv 2104.09864) and the ways to stretch its context."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from paceline.core.registry import Registry
from paceline.layers.placement import Placement

Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and signed sines of a step's rows, [T, 1, head_dim] each; the first half of the sines is negated."""

# Up to this size the angles of every position are kept, which costs a step one look-up; beyond it (contexts of a
# million tokens, or a config.json that lies) each step computes its own.
MAX_TABLE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryConfig:
    """``theta`` is the base of the frequencies; ``scaling`` holds the numbers that ``kind`` needs, by Hub name."""

    head_dim: int
    max_position_embeddings: int
    theta: float
    kind: str = "default"
    scaling: Mapping[str, float] = field(default_factory=dict)


Frequencies = tuple[torch.Tensor, float]
"""Radians per position [head_dim / 2], and the factor on cosines and sines."""


@dataclass(frozen=True, slots=True)
class RotaryKind:
    """How one kind changes the plain frequencies [head_dim / 2], and what it reads from ``scaling``."""

    scale: Callable[[torch.Tensor, RotaryConfig], Frequencies]
    needs: tuple[str, ...] = ()
    allows: tuple[str, ...] = ()
    flags: tuple[tuple[str, bool], ...] = ()
    """True-or-false values and their defaults; 1.0 or 0.0 in ``scaling``."""


rotary_kinds: Registry[RotaryKind] = Registry("rotary kind")


def _default(plain: torch.Tensor, config: RotaryConfig) -> Frequencies:  # noqa: ARG001
    return plain, 1.0


def _linear(plain: torch.Tensor, config: RotaryConfig) -> Frequencies:
    """Position interpolation (Chen et al. 2023, arXiv 2306.15595)."""
    return plain / config.scaling["factor"], 1.0


def _llama3(plain: torch.Tensor, config: RotaryConfig) -> Frequencies:
    """Llama 3.1: long waves are stretched, short ones kept, those between blended."""
    factor, context = config.scaling["factor"], config.scaling["original_max_position_embeddings"]
    low, high = config.scaling["low_freq_factor"], config.scaling["high_freq_factor"]
    wavelength = 2 * math.pi / plain
    share = (context / wavelength - low) / (high - low)
    blended = (1 - share) * plain / factor + share * plain
    scaled = torch.where(wavelength < context / high, plain, blended)
    return torch.where(wavelength > context / low, plain / factor, scaled), 1.0


def _yarn(plain: torch.Tensor, config: RotaryConfig) -> Frequencies:
    """YaRN (Peng et al. 2023, arXiv 2309.00071): a ramp between plain and interpolated frequencies."""
    scaling, factor = config.scaling, config.scaling["factor"]
    bounds = [_yarn_channel(config, scaling.get(*rate)) for rate in (("beta_fast", 32.0), ("beta_slow", 1.0))]
    if scaling["truncate"]:
        bounds = [math.floor(bounds[0]), math.ceil(bounds[1])]
    low, high = max(bounds[0], 0), min(bounds[1], config.head_dim - 1)
    channels = torch.arange(config.head_dim // 2, dtype=plain.dtype, device=plain.device)
    ramp = ((channels - low) / ((high - low) or 0.001)).clamp(0, 1)
    return plain / factor * ramp + plain * (1 - ramp), _yarn_attention_factor(config)


def _yarn_channel(config: RotaryConfig, rotations: float) -> float:
    """The channel that turns ``rotations`` times within the original context."""
    context = config.scaling["original_max_position_embeddings"]
    return config.head_dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(config.theta))


def _yarn_attention_factor(config: RotaryConfig) -> float:
    scaling = config.scaling
    if "attention_factor" in scaling:
        return scaling["attention_factor"]
    growth = math.log(max(scaling["factor"], 1.0)) * 0.1
    if "mscale" in scaling and "mscale_all_dim" in scaling:
        return (growth * scaling["mscale"] + 1) / (growth * scaling["mscale_all_dim"] + 1)
    return growth + 1


rotary_kinds.add("default")(RotaryKind(_default))
rotary_kinds.add("linear")(RotaryKind(_linear, ("factor",)))
rotary_kinds.add("llama3")(
    RotaryKind(_llama3, ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"))
)
rotary_kinds.add("yarn")(
    RotaryKind(
        _yarn,
        needs=("factor", "original_max_position_embeddings"),
        allows=("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
        flags=(("truncate", True),),
    )
)


def frequencies(config: RotaryConfig, *, dtype: torch.dtype, device: torch.device) -> Frequencies:
    """Radians per position of each channel pair [head_dim / 2] in ``dtype``, and the factor on cosines and sines."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=dtype, device=device) / config.head_dim
    return rotary_kinds[config.kind].scale(1.0 / (config.theta**exponents), config)


class Rotary(nn.Module):
    """Looks up the rotations of a step's positions, once for all of its layers.

    Angles are computed in float32, or float64 for a float64 model, and their sines rounded to the model's dtype.
    """

    table: torch.Tensor | None  # [max_position_embeddings, 2, 1, head_dim]

    def __init__(self, config: RotaryConfig, *, on: Placement) -> None:
        super().__init__()
        self.dtype = on.dtype
        radians, self.factor = frequencies(config, dtype=on.compute_dtype, device=on.device)
        self.radians = nn.Buffer(radians, persistent=False)
        num_positions = config.max_position_embeddings
        fits = num_positions * 2 * config.head_dim * on.dtype.itemsize <= MAX_TABLE_BYTES
        table = self._rows(torch.arange(num_positions, device=on.device)) if fits else None
        self.register_buffer("table", table, persistent=False)

    def _rows(self, positions: torch.Tensor) -> torch.Tensor:
        angles = positions[:, None, None] * self.radians  # [T, 1, head_dim / 2]
        cosine, sine = angles.cos(), angles.sin()
        rows = torch.stack((torch.cat((cosine, cosine), -1), torch.cat((-sine, sine), -1)), dim=1)
        return (rows * self.factor).to(self.dtype)  # [T, 2, 1, head_dim]

    def forward(self, positions: torch.Tensor) -> Rotation:
        """i64[T], each below ``max_position_embeddings`` -> (cosines, signed sines), [T, 1, head_dim] each."""
        rows = self._rows(positions) if self.table is None else self.table[positions]
        cosine, sine = rows.unbind(1)
        return cosine, sine


def rotate(heads: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Turns channel pairs (i, i + head_dim / 2) of heads [T, N, head_dim] by their rows' angles."""
    cosine, sine = rotation
    return torch.addcmul(heads * cosine, heads.roll(heads.shape[-1] // 2, dims=-1), sine)
