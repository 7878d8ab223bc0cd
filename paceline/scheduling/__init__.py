"""Which requests run in the next step, with how many tokens, and who gives way when pages run out."""

from paceline.scheduling.pacer import ChunkPacer
from paceline.scheduling.policies import SchedulingPolicy, policies
from paceline.scheduling.scheduler import Scheduler

__all__ = ["ChunkPacer", "Scheduler", "SchedulingPolicy", "policies"]
