"""Knows how each kind of rotary embedding stretches the plain frequencies; nothing of positions, rows or heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from paceline.core.batch import Int64
from paceline.core.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryConfig:
    """``theta`` is the base of the frequencies; ``scaling`` and ``lists`` hold what ``kind`` needs, by Hub name."""

    rotary_dim: int
    """Channels of each head that are rotated, the first ones."""
    max_position_embeddings: int
    """As the checkpoint has it."""
    theta: float
    kind: str = "default"
    scaling: Mapping[str, float] = field(default_factory=dict)
    lists: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """One number per channel pair each."""

    @property
    def num_positions(self) -> int:
        """How far a sequence may reach."""
        reach = rotary_kinds[self.kind].reach
        return max(self.max_position_embeddings, 0 if reach is None else int(reach(self)))


Frequencies = tuple[torch.Tensor, float]
"""Radians per position [rotary_dim / 2], and the factor on cosines and sines."""


@dataclass(frozen=True, slots=True)
class RotaryKind:
    """How one kind changes the plain frequencies [rotary_dim / 2], and what it reads from a checkpoint's config."""

    scale: Callable[[torch.Tensor, RotaryConfig, int], Frequencies]
    """(plain frequencies, config, length of the sequence) -> frequencies; the factor is the same for all lengths."""
    needs: tuple[str, ...] = ()
    allows: tuple[str, ...] = ()
    flags: tuple[tuple[str, bool], ...] = ()
    """True-or-false values and their defaults; 1.0 or 0.0 in ``scaling``."""
    lists: tuple[str, ...] = ()
    regimes: Callable[[RotaryConfig, Int64], Int64] | None = None
    """Lengths -> for each the least length that has the same frequencies, 0 standing for the shortest; None if all
    lengths have the same."""
    implies_factor: bool = False
    """Without ``factor`` it is ``max_position_embeddings`` over ``original_max_position_embeddings``."""
    reach: Callable[[RotaryConfig], float] | None = None
    """How many positions it serves, where that may be more than the checkpoint's ``max_position_embeddings``."""


rotary_kinds: Registry[RotaryKind] = Registry("rotary kind")


def frequencies(config: RotaryConfig, *, length: int = 0, dtype: torch.dtype, device: torch.device) -> Frequencies:
    """Radians per position of each channel pair [rotary_dim / 2] in ``dtype``, and the factor on cosines and sines."""
    # An outline's numbers are thrown away, but on the "meta" device torch would load its compiler to make them.
    place = torch.device("cpu") if device.type == "meta" else device
    exponents = torch.arange(0, config.rotary_dim, 2, dtype=dtype, device=place) / config.rotary_dim
    radians, factor = rotary_kinds[config.kind].scale(1.0 / (config.theta**exponents), config, length)
    return radians.to(device), factor


def _default(plain: torch.Tensor, config: RotaryConfig, length: int) -> Frequencies:  # noqa: ARG001
    return plain, 1.0


def _linear(plain: torch.Tensor, config: RotaryConfig, length: int) -> Frequencies:  # noqa: ARG001
    """Position interpolation (Chen et al. 2023, arXiv 2306.15595)."""
    return plain / config.scaling["factor"], 1.0


def _dynamic(plain: torch.Tensor, config: RotaryConfig, length: int) -> Frequencies:
    """NTK-aware scaling by the length (described in arXiv 2309.00071, section 3): the base grows with it."""
    factor, size = config.scaling["factor"], config.rotary_dim
    growth = factor * max(length / config.max_position_embeddings, 1.0) - (factor - 1)
    exponents = torch.arange(0, size, 2, dtype=plain.dtype, device=plain.device) / size
    return plain / (growth ** (size / (size - 2))) ** exponents, 1.0


def _dynamic_reach(config: RotaryConfig) -> float:
    return config.max_position_embeddings * config.scaling["factor"]


def _dynamic_regimes(config: RotaryConfig, lengths: Int64) -> Int64:
    return np.where(lengths > config.max_position_embeddings, lengths, 0)


def _llama3(plain: torch.Tensor, config: RotaryConfig, length: int) -> Frequencies:  # noqa: ARG001
    """Llama 3.1: long waves are stretched, short ones kept, those between blended."""
    factor, context = config.scaling["factor"], config.scaling["original_max_position_embeddings"]
    low, high = config.scaling["low_freq_factor"], config.scaling["high_freq_factor"]
    wavelength = 2 * math.pi / plain
    share = (context / wavelength - low) / (high - low)
    blended = (1 - share) * plain / factor + share * plain
    scaled = torch.where(wavelength < context / high, plain, blended)
    return torch.where(wavelength > context / low, plain / factor, scaled), 1.0


def _yarn(plain: torch.Tensor, config: RotaryConfig, length: int) -> Frequencies:  # noqa: ARG001
    """YaRN (Peng et al. 2023, arXiv 2309.00071): a ramp between plain and interpolated frequencies."""
    scaling, factor = config.scaling, config.scaling["factor"]
    bounds = [_yarn_channel(config, scaling.get(*rate)) for rate in (("beta_fast", 32.0), ("beta_slow", 1.0))]
    if scaling["truncate"]:
        bounds = [math.floor(bounds[0]), math.ceil(bounds[1])]
    low, high = max(bounds[0], 0), min(bounds[1], config.rotary_dim - 1)
    channels = torch.arange(config.rotary_dim // 2, dtype=plain.dtype, device=plain.device)
    ramp = ((channels - low) / ((high - low) or 0.001)).clamp(0, 1)
    return plain / factor * ramp + plain * (1 - ramp), _yarn_attention_factor(config)


def _yarn_reach(config: RotaryConfig) -> float:
    return config.scaling["original_max_position_embeddings"] * config.scaling["factor"]


def _yarn_channel(config: RotaryConfig, rotations: float) -> float:
    """The channel that turns ``rotations`` times within the original context."""
    context = config.scaling["original_max_position_embeddings"]
    return config.rotary_dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(config.theta))


def _yarn_attention_factor(config: RotaryConfig) -> float:
    scaling = config.scaling
    if "attention_factor" in scaling:
        return scaling["attention_factor"]
    growth = math.log(max(scaling["factor"], 1.0)) * 0.1
    if "mscale" in scaling and "mscale_all_dim" in scaling:
        return (growth * scaling["mscale"] + 1) / (growth * scaling["mscale_all_dim"] + 1)
    return growth + 1


def _longrope(plain: torch.Tensor, config: RotaryConfig, length: int) -> Frequencies:
    """LongRoPE (Ding et al. 2024, arXiv 2402.13753): one divisor per channel pair for short texts, one for long."""
    scaling = config.scaling
    context = scaling["original_max_position_embeddings"]
    divisors = config.lists["long_factor" if length > context else "short_factor"]
    factor = scaling.get("attention_factor")
    if factor is None:
        growth = max(scaling["factor"], 1.0)
        factor = math.sqrt(1 + math.log(growth) / math.log(context))
    return plain / torch.tensor(divisors, dtype=plain.dtype, device=plain.device), factor


def _longrope_regimes(config: RotaryConfig, lengths: Int64) -> Int64:
    context = int(config.scaling["original_max_position_embeddings"])
    return np.where(lengths > context, np.int64(context + 1), 0)


ORIGINAL = "original_max_position_embeddings"

rotary_kinds.add("default")(RotaryKind(_default))
rotary_kinds.add("linear")(RotaryKind(_linear, ("factor",)))
rotary_kinds.add("dynamic")(RotaryKind(_dynamic, ("factor",), regimes=_dynamic_regimes, reach=_dynamic_reach))
rotary_kinds.add("llama3")(RotaryKind(_llama3, ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL)))
rotary_kinds.add("yarn")(
    RotaryKind(
        _yarn,
        needs=("factor", ORIGINAL),
        allows=("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
        flags=(("truncate", True),),
        reach=_yarn_reach,
        implies_factor=True,
    )
)
_LONGROPE = RotaryKind(
    _longrope,
    needs=("factor", ORIGINAL),
    allows=("attention_factor",),
    lists=("short_factor", "long_factor"),
    regimes=_longrope_regimes,
    implies_factor=True,
)
for _name in ("longrope", "su"):  # "su": the first Phi-3 checkpoints
    rotary_kinds.add(_name)(_LONGROPE)
