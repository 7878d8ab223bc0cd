"""Plans a step in which all requests decode, from arrays rather than request by request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from paceline.core.batch import Int32
from paceline.core.step import StepPlan
from paceline.scheduling.depths import DraftDepths
from paceline.scheduling.seating import Seating


@dataclass(frozen=True, slots=True)
class RoundLimits:
    """The most rounds that a step without drafts and one with drafts may have."""

    plain: int
    draft: int
    can_repeat: Callable[[StepPlan], bool]
    """Whether the rounds of a plan can follow one another in one call."""


class SteadyPlanner:
    """Plans steps in which no request enters or gives way, and pages are there for all."""

    def __init__(self, seating: Seating, depths: DraftDepths) -> None:
        self._seating, self._depths, self._cache = seating, depths, seating.cache

    def plan(self, budget: int, limits: RoundLimits) -> StepPlan | None:
        """Plans all running requests within ``budget`` rows; None if the step needs the full planner."""
        seats = self._seating.running_seats
        known, start = self._seating.seats.num_tokens[seats], self._seating.cached(seats)
        num_known = known - start
        if (num_known != 1).any():
            return None
        depth, drafting = self._depths.of_running(known)
        num_nodes = self._depths.num_nodes(depth) if drafting else depth
        ends = known + num_nodes
        if len(seats) + int(num_nodes.sum()) > budget:
            return None
        plan = StepPlan(list(self._seating.running), seats, start, num_known, depth)
        repeated = self._repeated(plan, ends, drafting, limits)
        if repeated is not None:
            return repeated
        return plan if self._reserves_rounds(seats, ends, drafting) else None

    def _repeated(self, plan: StepPlan, ends: Int32, drafting: list[int], limits: RoundLimits) -> StepPlan | None:
        """The plan with as many rounds as every request has room for, whose slots are reserved.

        None, and nothing has changed, if it can have but one.
        """
        depth, most = plan.draft_depth, limits.draft if drafting else limits.plain
        if most <= 1:
            return None
        room = self._seating.last_slot[plan.seats] - plan.end + np.int32(1)
        rounds = min(most, int((room // (depth + 1)).min()))
        if rounds <= 1:
            return None
        repeated = replace(plan, num_rounds=rounds)
        if not limits.can_repeat(repeated):
            return None
        ends = ends + np.int32(rounds - 1) * (depth + np.int32(1))
        return repeated if self._reserves_rounds(plan.seats, ends, drafting) else None

    def _reserves_rounds(self, seats: Int32, ends: Int32, drafting: list[int]) -> bool:
        """Whether the slots [0, ends) are writable now: the drafter's too, of those that are drafted for."""
        target, draft = self._seating.target_groups, self._seating.draft_groups
        if len(drafting) in (0, len(seats)):
            return self._reserves(seats, ends, self._seating.all_groups if drafting else target)
        drafted = seats[drafting], ends[drafting]
        if not all(self._cache.groups[index].could_hold(*drafted) for index in draft):
            return False
        return self._reserves(seats, ends, target) and self._reserves(*drafted, draft)

    def _reserves(self, seats: Int32, ends: Int32, groups: Sequence[int]) -> bool:
        """Whether the slots [0, ends) of all seats are writable now."""
        return self._cache.holds(seats, ends, groups) or self._cache.reserve_all(seats, ends, groups)
