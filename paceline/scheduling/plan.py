"""The plan of one step while it is being made: who gets how much of the token budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paceline.core.request import Request
from paceline.core.step import StepPlan


@dataclass(frozen=True, slots=True)
class Share:
    """What one request gets in the step being planned."""

    start: int
    num_known: int
    depth: int
    num_rows: int
    """Known tokens and draft nodes."""


class PlanBuilder:
    """The shares given so far and the rows that are left."""

    def __init__(self, budget: int) -> None:
        self.budget = self.chunk = budget
        """Rows that are left, and how many of them may be known tokens: drafts are not bounded by the latter."""
        self._shares: dict[Request, Share] = {}
        self.gave_way: set[Request] = set()
        """Running requests that were sent back to wait while the plan was made."""

    @property
    def has_room(self) -> bool:
        return min(self.budget, self.chunk) > 0

    def give(self, request: Request, share: Share) -> None:
        self._shares[request] = share
        self.budget -= share.num_rows
        self.chunk -= share.num_known

    def give_way(self, request: Request) -> None:
        """Takes back a request's share, if it has one, and records that it gave way."""
        self.gave_way.add(request)
        share = self._shares.pop(request, None)
        if share is not None:
            self.budget += share.num_rows
            self.chunk += share.num_known

    def step_plan(self) -> StepPlan:
        rows = [(request.seat, share.start, share.num_known, share.depth) for request, share in self._shares.items()]
        columns = np.array(rows, dtype=np.int32).reshape(-1, 4)
        return StepPlan(list(self._shares), *np.ascontiguousarray(columns.T))
