"""Knows when requests arrive at a service: one after another, at a constant rate, or at random; sends none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from paceline.core.errors import ConfigError
from paceline.core.registry import Registry

Draw = Callable[[int, float, int], list[float]]
"""(count, rate a second, seed) -> when each request is due, in seconds from the start, never falling"""

arrivals: Registry[Draw] = Registry("kind of arrivals")


@arrivals.add("constant")
def constant(count: int, rate: float, _seed: int) -> list[float]:
    """One every 1 / rate seconds."""
    return [number / rate for number in range(count)]


@arrivals.add("poisson")
def poisson(count: int, rate: float, seed: int) -> list[float]:
    """Independent arrivals: exponential gaps of mean 1 / rate, the first request at once."""
    gaps = np.random.default_rng(seed % 2**64).exponential(1 / rate, size=count)
    gaps[0] = 0.0
    found: list[float] = np.cumsum(gaps).tolist()
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How requests come: open loop, due at given times whatever the service does, or closed loop, so many at a time."""

    name: str
    due: Callable[[int, int], list[float]] | None = None
    """(count, seed) -> when each is due; None is a closed loop."""
    concurrency: int = 1
    """Of a closed loop: the next request comes when one of these is answered."""


def closed(concurrency: int) -> Load:
    return Load(name=f"{concurrency} at a time", concurrency=concurrency)


def opened(kind: str, rate: float) -> Load:
    """Raises ConfigError: an unknown kind, or a rate that is not above 0."""
    if not 0 < rate < 1e6:
        raise ConfigError(f"a rate must be above 0, got {rate:g} a second\nFor example --rates 2,4.")
    draw = arrivals[kind]
    return Load(name=f"{kind}, {rate:g}/s", due=lambda count, seed: draw(count, rate, seed))
