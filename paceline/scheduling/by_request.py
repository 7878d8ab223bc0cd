"""The plan of a step request by request: who is served first, who gives way, and who of the waiting enters."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from paceline.core.request import Request
from paceline.core.step import StepPlan
from paceline.scheduling.depths import DraftDepths
from paceline.scheduling.entrance import Entrance
from paceline.scheduling.pacer import ChunkPacer
from paceline.scheduling.plan import PlanBuilder, Share
from paceline.scheduling.seating import ControlsError, Seating


class Orders(Protocol):
    """What a plan may do to requests. Whoever carries it out is not kept: it has the planner."""

    def preempt(self, request: Request) -> None:
        """Sends a running request back to wait."""
        ...

    def refuse(self, request: Request, error: Exception) -> None:
        """Ends a request whose controls cannot be taken in."""
        ...


class RequestPlanner:
    """Gives out the rows of a step: first to decoding requests, then to running prompts, then to newcomers."""

    def __init__(
        self,
        seating: Seating,
        depths: DraftDepths,
        entrance: Entrance,
    ) -> None:
        self._seating, self._depths, self._entrance = seating, depths, entrance
        self._waiting, self._precedence, self._policy = (
            entrance.waiting,
            entrance.precedence,
            entrance.precedence.policy,
        )
        self._num_shares = 0
        self._last_served: npt.NDArray[np.int64] = np.zeros(seating.seats.capacity, dtype=np.int64)
        """[S] the number of the last share that this seat was given."""

    def count(self, plan: StepPlan) -> None:
        """Records which requests a plan serves, whichever planner made it."""
        self._last_served[plan.seats] = np.arange(self._num_shares, self._num_shares + len(plan))
        self._num_shares += len(plan)

    def plan(self, budget: int, pacer: ChunkPacer, orders: Orders) -> StepPlan:
        """The plan of at most ``budget`` rows, whose prompts are cut as the pacer says."""
        plan = PlanBuilder(budget)
        decoding, prefilling = self._running_order()
        others = len(decoding) + len(prefilling)
        for request in decoding:
            others -= 1
            if request.seat >= 0:  # else it had to give way to one before it
                self._serve(request, plan, others, orders)
        if (prefilling or self._waiting) and self._seating.cache.kind.retains:
            plan.chunk = min(plan.chunk, pacer.most_rows(decoding=bool(decoding)))
        for request in prefilling:
            others -= 1
            if request.seat >= 0:
                self._serve(request, plan, others, orders)
        if not plan.gave_way:  # else whoever gave way would come straight back
            self._admit(plan, orders)
        return plan.step_plan()

    def _running_order(self) -> tuple[list[Request], list[Request]]:
        """Decoding requests and prefilling ones: those go first, so that a long prompt never stalls them.

        Decoding requests of a rank take turns, lest a budget that is too small for all always serves the same.
        """
        prefilling = [request for request in self._seating.running if self._seating.num_pending(request) > 1]
        decoding = [request for request in self._seating.running if self._seating.num_pending(request) <= 1]
        decoding.sort(key=lambda request: (self._policy.standing(request)[0], self._last_served[request.seat]))
        return decoding, sorted(prefilling, key=self._precedence.standing)

    def _serve(self, request: Request, plan: PlanBuilder, others: int, orders: Orders) -> None:
        """Gives a running request its share of the step, if need be at the cost of those that give way first.

        No draft takes the row that each of the ``others`` still to be served needs to go on.
        """
        while plan.has_room and not self._share(request, plan, others):
            victim = max(self._seating.running, key=self._precedence.standing)
            self._give_way(victim, plan, orders)
            if victim is request:
                return

    def _give_way(self, victim: Request, plan: PlanBuilder, orders: Orders) -> None:
        plan.give_way(victim)
        orders.preempt(victim)

    def _share(self, request: Request, plan: PlanBuilder, others: int = 0) -> bool:
        """Reserves the pages of a share, with a draft or else without; False, and nothing changed, if short."""
        seat, pending = request.seat, self._seating.num_pending(request)
        start = int(self._seating.seats.num_tokens[seat]) - pending
        known = min(pending, plan.budget, plan.chunk)
        depth, nodes = self._depths.of(request, plan.budget - known - others) if known == pending else (0, 0)
        with_draft = [(depth, known + nodes)] if nodes else []
        for deep, num_rows in [*with_draft, (0, known)]:
            if self._seating.cache.reserve(seat, start + num_rows, self._seating.groups_of(request)):
                plan.give(request, Share(start, known, deep, num_rows))
                return True
        return False

    def _admit(self, plan: PlanBuilder, orders: Orders) -> None:
        """Seats waiting requests in order, until one does not fit: no later one overtakes it."""
        for request in self._waiting:
            if not plan.has_room:
                return
            if request in plan.gave_way or self._entrance.must_wait_for_sibling(request):
                continue
            victims = self._entrance.victims(request)
            if victims is None:
                return
            for victim in victims:
                self._give_way(victim, plan, orders)
            if not self._enter(request, plan, orders):
                return

    def _enter(self, request: Request, plan: PlanBuilder, orders: Orders) -> bool:
        """Seats a waiting request, which takes nobody's pages; False if those it found do not do."""
        self._waiting.remove(request)
        try:
            self._seating.seat(request)
        except ControlsError as error:
            orders.refuse(request, error.cause)
            return True
        if not self._share(request, plan):
            self._seating.leave(request)
            self._waiting.add(request)
            return False
        self._seating.count_lookup(request)
        self._policy.serve(request)
        return True
