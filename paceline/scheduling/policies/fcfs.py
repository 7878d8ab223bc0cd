"""First come, first served."""

from __future__ import annotations

from paceline.scheduling.policies.base import SchedulingPolicy, policies


@policies.add("fcfs")
class FirstComeFirstServed(SchedulingPolicy):
    """One lane, by arrival.

    Promise: a call never waits for one that came later, and the first of its answers is never preempted for it. The
    earliest therefore always advances, and everybody is served in the end.
    """
