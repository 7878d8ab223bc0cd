"""Who goes first and who gives way: one file per policy."""

from paceline.scheduling.policies import fair, fcfs, priority
from paceline.scheduling.policies.base import SchedulingPolicy, Standing, policies

__all__ = ["SchedulingPolicy", "Standing", "fair", "fcfs", "policies", "priority"]
