"""Knows what a few noisy numbers say: middle, spread, and how sure a paired ratio is; nothing of what they measure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_PAIRS = 6
"""With fewer pairs not even their minimum and maximum bracket the true median in 95% of cases (1 - 2 / 2**n)."""
CONFIDENCE = 0.95
RESAMPLES = 4000
MAD_TO_SIGMA = 1.4826
"""Times the MAD of normal noise, its standard deviation."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Where some numbers lie; all in the numbers' own unit."""

    median: float
    mad: float
    """Median absolute deviation from the median, unscaled."""
    iqr: float
    low: float
    high: float
    count: int


def expand(values: Sequence[float]) -> Spread:
    """Raises ValueError for no values."""
    if not values:
        raise ValueError("there are no values to describe")
    array = np.asarray(values, dtype=np.float64)
    median = float(np.median(array))
    first, third = np.percentile(array, (25, 75))
    return Spread(
        median=median,
        mad=float(np.median(np.abs(array - median))),
        iqr=float(third - first),
        low=float(array.min()),
        high=float(array.max()),
        count=len(array),
    )


@dataclass(frozen=True, slots=True)
class PairedRatio:
    """How many times better the subject is than the control, from trials that ran side by side."""

    median: float
    """Of the ratios; above 1 the subject is better."""
    low: float
    high: float
    """Ends of the interval."""
    num_pairs: int
    confidence: float
    enough: bool
    """Whether there are pairs enough for the interval to hold what it promises; else it is an indication."""

    @property
    def verdict(self) -> str:
        """ "better", "worse" or "no difference shown"; the last also where there are too few pairs."""
        if not self.enough or self.low <= 1.0 <= self.high:
            return "no difference shown"
        return "better" if self.low > 1.0 else "worse"


def paired_ratio(
    subject: Sequence[float], control: Sequence[float], *, lower_is_better: bool, seed: int
) -> PairedRatio:
    """The median of the pairs' ratios with its bootstrap interval (percentile, whole pairs resampled).

    Args:
        subject, control: the same figure of trial i of either side, in order; above 0.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        ValueError: no pairs, unequal numbers, or a figure that is not above 0.
    """
    if len(subject) != len(control) or not subject:
        raise ValueError(f"{len(subject)} and {len(control)} figures are no pairs")
    if not all(math.isfinite(value) and value > 0 for value in (*subject, *control)):
        raise ValueError("a figure to compare must be finite and above 0")
    over, under = (control, subject) if lower_is_better else (subject, control)
    ratios = np.asarray(over, dtype=np.float64) / np.asarray(under, dtype=np.float64)
    random = np.random.default_rng(seed % 2**64)
    medians = np.median(ratios[random.integers(len(ratios), size=(RESAMPLES, len(ratios)))], axis=1)
    outside = (1 - CONFIDENCE) / 2 * 100
    low, high = np.percentile(medians, (outside, 100 - outside))
    if len(ratios) < MIN_PAIRS:
        low, high = ratios.min(), ratios.max()
    return PairedRatio(
        median=float(np.median(ratios)),
        low=float(low),
        high=float(high),
        num_pairs=len(ratios),
        confidence=CONFIDENCE,
        enough=len(ratios) >= MIN_PAIRS,
    )


def percentiles(values: Sequence[float], wanted: Sequence[int] = (50, 90, 95, 99)) -> dict[str, float | None]:
    """``{"p50": ...}``, linearly interpolated; None where there are no values."""
    if not values:
        return {f"p{share}": None for share in wanted}
    found = np.percentile(np.asarray(values, dtype=np.float64), list(wanted))
    return {f"p{share}": float(value) for share, value in zip(wanted, found, strict=True)}
