"""Knows in which order trials run: A and B side by side, who goes first drawn anew for every pair."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paceline.benchmark.trial import CONTROL, SUBJECT
from paceline.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialPlan:
    """How many trials there are, and how they are arranged.

    Raises:
        ConfigError: a number that makes no sense.
    """

    num_pairs: int = 10
    pairs_per_block: int = 2
    """Probes run before and after each block, and an interrupted run goes on with the first block it lacks."""
    num_warmup: int = 1
    """Trials of either side that are thrown away first."""
    seed: int = 0
    max_drift: float = 0.1
    """How far a probe may lie below the fastest of its kind before the machine counts as unsteady."""

    def __post_init__(self) -> None:
        bounds = {"num_pairs": 1, "pairs_per_block": 1, "num_warmup": 0}
        for name, low in bounds.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if not 0 < self.max_drift < 1:
            raise ConfigError(f"max_drift must lie between 0 and 1, got {self.max_drift}")

    @property
    def num_blocks(self) -> int:
        return -(-self.num_pairs // self.pairs_per_block)

    def pairs(self, block: int) -> list[tuple[int, tuple[str, str]]]:
        """(number, the sides in the order they run) of the block's pairs; depends on seed and number alone."""
        first = block * self.pairs_per_block
        return [(n, self._order(n)) for n in range(first, min(first + self.pairs_per_block, self.num_pairs))]

    def _order(self, pair: int) -> tuple[str, str]:
        # Drawn two pairs at a time, one each way round: neither side is first more often than the other.
        swapped = bool(np.random.default_rng((self.seed % 2**64, pair // 2)).integers(2)) != bool(pair % 2)
        return (CONTROL, SUBJECT) if swapped else (SUBJECT, CONTROL)
