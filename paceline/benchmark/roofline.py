"""Knows how close counted work in measured time comes to what the probes say the machine can do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Roofline:
    """Shares of the machine's limits; about 1 is as fast as it goes."""

    bandwidth: float
    compute: float

    @property
    def bound(self) -> str:
        """Which limit is nearer."""
        return "bandwidth" if self.bandwidth >= self.compute else "compute"


def roofline(
    *, num_bytes: float, num_flops: float, seconds: float, bytes_per_second: float, flops_per_second: float
) -> Roofline:
    """Of work that took ``seconds``, on a machine whose probes gave the two rates."""
    if not seconds > 0:
        raise ValueError(f"seconds must be above 0, got {seconds}")
    return Roofline(num_bytes / seconds / bytes_per_second, num_flops / seconds / flops_per_second)
