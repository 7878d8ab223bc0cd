"""The one scheduling rule: let the cache catch up with what is known, within a token budget, plus a draft."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from paceline.cache import CacheManager
from paceline.core.batch import Int32
from paceline.core.config import EngineConfig
from paceline.core.request import FinishReason, Request
from paceline.core.seats import Seats
from paceline.core.step import StepPlan
from paceline.sampling import SamplingState
from paceline.scheduling.pacer import ChunkPacer
from paceline.scheduling.plan import Plan, Share
from paceline.scheduling.policies import SchedulingPolicy, policies
from paceline.scheduling.precedence import Precedence
from paceline.scheduling.queue import WaitingQueue
from paceline.scheduling.seating import ControlsError, Seating
from paceline.speculation import GuardedProposer, draft_policies

log = logging.getLogger(__name__)


class Scheduler:
    """Decides who runs and with how much, who waits and who gives way; the cache follows its orders."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        seats: Seats,
        cache: CacheManager,
        sampling: SamplingState,
        proposer: GuardedProposer | None,
        target_groups: Sequence[int],
    ) -> None:
        self.seats, self.cache, self.proposer = seats, cache, proposer
        self.policy: SchedulingPolicy = policies[config.scheduling_policy]()
        self.precedence = Precedence(self.policy)
        self.waiting = WaitingQueue(self.policy, self.precedence.calls)
        self.seating = Seating(
            seats=seats,
            cache=cache,
            sampling=sampling,
            proposer=proposer,
            target_groups=target_groups,
            calls=self.precedence.calls,
        )
        self.target_groups = self.seating.target_groups
        self.unfinished: dict[Request, None] = {}
        """Whoever was added and not yet taken out: what everything else is made anew from."""
        self.refused: list[Request] = []
        """Requests that failed while they were being seated; whoever tells of them empties the list."""
        self.num_preemptions = 0
        self.max_depth = config.speculative.num_speculative_tokens if config.speculative and proposer else 0
        self.draft_policy = draft_policies["fixed"](self.max_depth)
        nodes = [0, *(proposer.num_nodes(d) for d in self._all_depths())] if proposer else [0]
        self._nodes = np.array(nodes, dtype=np.int32)
        """Nodes by depth; asked for once, as the guard keeps to its first answer."""
        # A cache that forgets must see whole sequences, so only the number of seats bounds its steps.
        self.max_tokens = config.max_num_batched_tokens if cache.kind.retains else 2**31 - 1
        self.pacer = ChunkPacer(config.prefill_chunk_seconds)
        self.can_repeat: Callable[[StepPlan], bool] = lambda _: False
        """Whether the rounds of a plan can follow one another in one call; whoever computes steps says so."""
        self._plain_rounds = self._draft_rounds = 1
        self._num_shares = 0
        self._last_served = np.zeros(seats.capacity, dtype=np.int64)
        """[S] the number of the last share that this seat was given."""

    def _all_depths(self) -> range:
        return range(1, self.max_depth + 1)

    @property
    def running(self) -> list[Request]:
        return self.seating.running

    @property
    def num_unfinished(self) -> int:
        return len(self.waiting) + len(self.running)

    def add(self, request: Request) -> None:
        self.unfinished[request] = None
        self.policy.arrive(request)
        self.waiting.add(request)

    def remove(self, request: Request) -> None:
        """Takes a finished or aborted request out, wherever it is, and gives back all it held."""
        if request.seat >= 0:
            self.seating.leave(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        else:
            return
        self.policy.leave(request)
        self.unfinished.pop(request, None)

    def restart(self) -> list[Request]:
        """Sends everybody back to wait and makes all books anew, whatever an exception left half done.

        Returns those that had finished already, who are taken out.
        """
        finished = []
        for request in list(self.unfinished):
            request.settle()
            if request.finished:
                finished.append(request)
            elif request.seat >= 0:
                request.num_preemptions += 1
                self.num_preemptions += 1
            request.seat = -1
        alive = [request for request in self.unfinished if not request.finished]
        for request in alive:
            request.slide()
        self.seating.reset()
        self.policy.restart(alive)
        self.waiting.restart(alive)
        self.unfinished = dict.fromkeys(alive)
        return finished

    def preempt(self, request: Request) -> None:
        """Sends a running request back to wait; it keeps its tokens and recomputes their K/V later."""
        self.seating.leave(request)
        request.slide()
        request.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.add(request)

    def publish(self, request: Request) -> None:
        """Offers a seated request's full pages to the prefix index."""
        self.seating.publish(request)

    def plan(self, plain_rounds: int = 1, draft_rounds: int = 1) -> StepPlan:
        """The plan of the next step; pages for all its slots, drafts included, are reserved.

        ``plain_rounds`` and ``draft_rounds`` are the most rounds that a step without and with drafts may have.
        """
        self._plain_rounds, self._draft_rounds = plain_rounds, draft_rounds
        self.seating.slide()
        if self.policy.accounts:
            for request in self.running:
                self.policy.serve(request)
        plan = self._plan_steady()
        if plan is None:
            plan = self._plan_each()
        self._last_served[plan.seats] = np.arange(self._num_shares, self._num_shares + len(plan))
        self._num_shares += len(plan)
        return plan

    def _plan_steady(self) -> StepPlan | None:
        """The plan when everybody decodes, nobody may enter and no page is missing, without looking at requests."""
        if not self.running or self._somebody_may_enter():
            return None
        seats = self.seating.running_seats
        known, start = self.seats.num_tokens[seats], self.seating.cached(seats)
        num_known = known - start
        if (num_known != 1).any():
            return None
        depth, drafting = self._steady_depths(seats, known)
        num_nodes = self._nodes[depth] if drafting else depth
        ends = known + num_nodes
        if len(seats) + int(num_nodes.sum()) > self.max_tokens:
            return None
        plan = StepPlan(list(self.running), seats, start, num_known, depth)
        repeated = self._repeated(plan, ends, drafting)
        if repeated is not None:
            return repeated
        held = self.cache.holds(seats, ends, self.target_groups)
        if not (held and self._drafter_holds(seats, ends, drafting)):
            return None
        return plan

    def _repeated(self, plan: StepPlan, ends: Int32, drafting: list[int]) -> StepPlan | None:
        """The plan with as many rounds as every request has room for, whose slots are reserved.

        None, and nothing has changed, if it can have but one.
        """
        depth, most = plan.draft_depth, self._draft_rounds if drafting else self._plain_rounds
        if most <= 1:
            return None
        room = self.seating.last_slot[plan.seats] - plan.end + np.int32(1)
        rounds = min(most, int((room // (depth + 1)).min()))
        if rounds <= 1:
            return None
        repeated = replace(plan, num_rounds=rounds)
        if not self.can_repeat(repeated):
            return None
        ends = ends + np.int32(rounds - 1) * (depth + np.int32(1))
        return repeated if self._reserves_rounds(plan.seats, ends, drafting) else None

    def _reserves_rounds(self, seats: Int32, ends: Int32, drafting: list[int]) -> bool:
        """Whether the slots [0, ends) are writable now: the drafter's too, of those that are drafted for."""
        if len(drafting) in (0, len(seats)):
            return self._reserves(seats, ends, self.seating.all_groups if drafting else self.target_groups)
        drafted = seats[drafting], ends[drafting]
        groups = [self.cache.groups[index] for index in self.seating.draft_groups]
        if not all(group.could_hold(*drafted) for group in groups):
            return False
        return self._reserves(seats, ends, self.target_groups) and self._reserves(*drafted, self.seating.draft_groups)

    def _reserves(self, seats: Int32, ends: Int32, groups: Sequence[int]) -> bool:
        """Whether the slots [0, ends) of all seats are writable now."""
        return self.cache.holds(seats, ends, groups) or self.cache.reserve_all(seats, ends, groups)

    def _steady_depths(self, seats: Int32, known: Int32) -> tuple[Int32, list[int]]:
        """How deep each running request may be drafted for, int32[running], and the numbers of those that are."""
        if not self.seating.drafts:
            return np.zeros(len(seats), dtype=np.int32), []
        depth = self.draft_policy.depths(seats, np.maximum(self.seating.last_slot[seats] - known, 0))
        drafting = [number for number, request in enumerate(self.running) if request.group.speculate]
        if len(drafting) < len(seats):
            plain = np.ones(len(seats), dtype=bool)
            plain[drafting] = False
            depth[plain] = 0
        return depth, drafting

    def _drafter_holds(self, seats: Int32, ends: Int32, drafting: list[int]) -> bool:
        if not drafting or not self.seating.draft_groups:
            return True
        if len(drafting) < len(seats):
            seats, ends = seats[drafting], ends[drafting]
        return self.cache.holds(seats, ends, self.seating.draft_groups)

    def _somebody_may_enter(self) -> bool:
        if not self.waiting:
            return False
        return bool(self.seats.num_free) or bool(self.precedence.displaceable(next(iter(self.waiting)), self.running))

    def _plan_each(self) -> StepPlan:
        plan, preempted = Plan(self.max_tokens), self.num_preemptions
        decoding, prefilling = self._running_order()
        others = len(decoding) + len(prefilling)
        for request in decoding:
            others -= 1
            if request.seat >= 0:  # else it had to give way to one before it
                self._serve(request, plan, others)
        if (prefilling or self.waiting) and self.cache.kind.retains:
            plan.chunk = min(plan.chunk, self.pacer.most_rows(decoding=bool(decoding)))
        for request in prefilling:
            others -= 1
            if request.seat >= 0:
                self._serve(request, plan, others)
        if self.num_preemptions == preempted:  # else whoever gave way would come straight back
            self._admit(plan)
        return plan.step_plan()

    def _running_order(self) -> tuple[list[Request], list[Request]]:
        """Decoding requests and prefilling ones: those go first, so that a long prompt never stalls them.

        Decoding requests of a rank take turns, lest a budget that is too small for all always serves the same.
        """
        prefilling = [request for request in self.running if self.seating.num_pending(request) > 1]
        decoding = [request for request in self.running if self.seating.num_pending(request) <= 1]
        decoding.sort(key=lambda request: (self.policy.standing(request)[0], self._last_served[request.seat]))
        return decoding, sorted(prefilling, key=self.precedence.standing)

    def _serve(self, request: Request, plan: Plan, others: int) -> None:
        """Gives a running request its share of the step, if need be at the cost of those that give way first.

        No draft takes the row that each of the ``others`` still to be served needs to go on.
        """
        while plan.has_room and not self._share(request, plan, others):
            victim = max(self.running, key=self.precedence.standing)
            plan.take_back(victim)
            self.preempt(victim)
            if victim is request:
                return

    def _share(self, request: Request, plan: Plan, others: int = 0) -> bool:
        """Reserves the pages of a share, with a draft or else without; False, and nothing changed, if short."""
        seat, pending = request.seat, self.seating.num_pending(request)
        start = int(self.seats.num_tokens[seat]) - pending
        known = min(pending, plan.budget, plan.chunk)
        depth, nodes = self._draft_of(request, plan.budget - known - others) if known == pending else (0, 0)
        with_draft = [(depth, known + nodes)] if nodes else []
        for deep, num_rows in [*with_draft, (0, known)]:
            if self.cache.reserve(seat, start + num_rows, self.seating.groups_of(request)):
                plan.give(request, Share(start, known, deep, num_rows))
                return True
        return False

    def _draft_of(self, request: Request, budget: int) -> tuple[int, int]:
        """How deep a draft may be and how many nodes it takes; (0, 0) if none is of use or the budget is short."""
        seat = np.array([request.seat], dtype=np.int32)
        room = np.maximum(self.seating.last_slot[seat] - self.seats.num_tokens[seat], 0)
        depth = int(self.draft_policy.depths(seat, room)[0])
        if depth <= 0 or not (request.group.speculate and self.seating.drafts):
            return 0, 0
        nodes = int(self._nodes[depth])
        return (depth, nodes) if nodes <= budget else (0, 0)

    def _admit(self, plan: Plan) -> None:
        """Seats those who wait, in order, until one does not fit: nobody overtakes it."""
        gave_way: set[Request] = set()
        for request in self.waiting:
            if not plan.has_room:
                return
            source = self.seating.sibling(request)
            if request in gave_way or (source is not None and self._computes_prompt(source)):
                continue  # that one's pages can be shared once its prompt is done
            victims = self._victims(request)
            if victims is None:
                return
            for victim in victims:
                plan.take_back(victim)
                self.preempt(victim)
            gave_way.update(victims)
            if not self._enter(request, plan):
                return

    def _enter(self, request: Request, plan: Plan) -> bool:
        """Seats a waiting request, which takes nobody's pages; False if those it found do not do."""
        self.waiting.remove(request)
        try:
            self.seating.seat(request)
        except ControlsError as error:
            self._refuse(request, error.cause)
            return True
        if not self._share(request, plan):
            self.seating.leave(request)
            self.waiting.add(request)
            return False
        self.seating.count_lookup(request)
        self.policy.serve(request)
        return True

    def _refuse(self, request: Request, error: Exception) -> None:
        log.warning("request %s could not be seated", request.id, exc_info=error)
        request.finish_reason = FinishReason.ERROR
        request.error = f"the engine could not take this request ({type(error).__name__})"
        self.policy.leave(request)
        self.unfinished.pop(request, None)
        self.refused.append(request)

    def _computes_prompt(self, request: Request) -> bool:
        return self.seating.num_shared(request) > self.seating.num_cached(request)

    def _victims(self, request: Request) -> list[Request] | None:
        """Whose places a waiting request needs, often nobody's; None if there is no seat and memory for it anyway."""
        displaceable = self.precedence.displaceable(request, self.running)
        victims: list[Request] = []
        while not (self.seats.num_free + len(victims) and self._fits(request, victims)):
            if len(victims) == len(displaceable):
                return None
            victims = displaceable[: len(victims) + 1]
        return victims

    def _fits(self, request: Request, victims: Sequence[Request]) -> bool:
        """Whether free pages, with the victims', would hold all it knows; alone, a request always may start.

        Pages that only the prefix index holds count as free, though some may hang on others' prefixes: who enters and
        finds none after all goes on waiting, at nobody's cost.
        """
        if len(victims) == len(self.running):
            return True
        shared = self.seating.num_shared(request) if self.seating.sibling(request) is not None else 0
        seats = np.array([victim.seat for victim in victims], dtype=np.int32)
        return all(
            group.num_missing(request.num_tokens - request.num_dropped + 1, shared)
            <= group.pages.num_free + group.pages.num_cached + group.num_released(seats)
            for group in (self.cache.groups[index] for index in self.seating.groups_of(request))
        )
