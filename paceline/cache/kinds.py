"""The cache kinds a user can choose: how large a page is, and whether K/V outlive the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paceline.core.registry import Registry


@dataclass(frozen=True, slots=True)
class CacheKind:
    """Geometry of a cache."""

    page_size: int
    retains: bool = True
    """False forgets all K/V after each step, so that every step recomputes the whole sequence."""


CacheKindBuilder = Callable[[int, int], CacheKind]
"""(block_size, longest sequence with its draft) -> kind"""

cache_kinds: Registry[CacheKindBuilder] = Registry("cache")


@cache_kinds.add("paged")
def paged(block_size: int, _longest: int) -> CacheKind:
    """Pages of ``block_size`` tokens, taken as a sequence grows (2309.06180)."""
    return CacheKind(page_size=block_size)


@cache_kinds.add("static")
def static(_block_size: int, longest: int) -> CacheKind:
    """One page per sequence, as long as the longest sequence: preallocated, contiguous."""
    return CacheKind(page_size=longest)


@cache_kinds.add("none")
def recompute(block_size: int, _longest: int) -> CacheKind:
    """Nothing is kept: the oracle that every other kind must equal."""
    return CacheKind(page_size=block_size, retains=False)
