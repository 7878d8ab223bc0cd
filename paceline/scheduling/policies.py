"""Who goes first: a policy is an order over requests."""

from __future__ import annotations

from typing import Protocol

from paceline.core.registry import Registry
from paceline.core.request import Request

Order = tuple[float, ...]


class SchedulingPolicy(Protocol):
    """Waiting requests are admitted in ascending order; the running one with the highest order is preempted first."""

    def order(self, request: Request) -> Order: ...


policies: Registry[type[SchedulingPolicy]] = Registry("scheduling_policy")


@policies.add("fcfs")
class FirstComeFirstServed:
    """By arrival."""

    def order(self, request: Request) -> Order:
        return (request.group.arrival, request.sample_index)
