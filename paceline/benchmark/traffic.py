"""Knows what kernels are told apart when bytes and operations are counted, and how counts add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LINEAR, ATTENTION, EMBEDDING, OTHER = "linear", "attention", "embedding", "other"
KERNELS = (LINEAR, ATTENTION, EMBEDDING)
"""What a roofline is drawn for: the traffic that the model itself needs."""
UNCOUNTED = "uncounted"
"""Native ops of which nobody said how they are counted: their calls count, and nothing else."""


@dataclass(slots=True)
class Traffic:
    """What some calls took."""

    num_calls: int = 0
    num_bytes: int = 0
    num_flops: int = 0

    def add(self, num_bytes: int, num_flops: int, num_calls: int = 1) -> None:
        self.num_calls += num_calls
        self.num_bytes += num_bytes
        self.num_flops += num_flops


def kernel_traffic(kinds: Mapping[str, Mapping[str, int]]) -> tuple[int, int]:
    """(bytes, operations) of linears, attention and embeddings together."""
    found = [kinds[kind] for kind in KERNELS if kind in kinds]
    return sum(one["num_bytes"] for one in found), sum(one["num_flops"] for one in found)
