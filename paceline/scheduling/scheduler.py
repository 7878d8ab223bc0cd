"""The one scheduling rule: let the cache catch up with what is known, within a token budget, plus a draft."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from paceline.cache import CacheManager
from paceline.core.config import EngineConfig
from paceline.core.request import FinishReason, Request
from paceline.core.seats import Seats
from paceline.core.step import StepPlan
from paceline.sampling import SamplingState
from paceline.scheduling.by_request import RequestPlanner
from paceline.scheduling.depths import DraftDepths
from paceline.scheduling.entrance import Entrance
from paceline.scheduling.pacer import ChunkPacer
from paceline.scheduling.policies import SchedulingPolicy, policies
from paceline.scheduling.precedence import Precedence
from paceline.scheduling.queue import WaitingQueue
from paceline.scheduling.seating import Seating
from paceline.scheduling.steady import RoundLimits, SteadyPlanner
from paceline.speculation import DraftPolicy, GuardedProposer

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
        calls = self.precedence.calls
        self.waiting = WaitingQueue(self.policy, calls)
        self.seating = Seating(
            seats=seats, cache=cache, sampling=sampling, proposer=proposer, target_groups=target_groups, calls=calls
        )
        self.target_groups = self.seating.target_groups
        self.unfinished: dict[Request, None] = {}
        """Every request that was added and not yet removed; all other books can be rebuilt from it."""
        self.refused: list[Request] = []
        """Requests that failed while they were being seated; the reader of the list empties it."""
        self.num_preemptions = 0
        self.max_depth = config.speculative.num_speculative_tokens if config.speculative and proposer else 0
        self.depths = DraftDepths(self.seating, self.max_depth)
        # A cache that forgets must see whole sequences, so only the number of seats bounds its steps.
        self.max_tokens = config.max_num_batched_tokens if cache.kind.retains else 2**31 - 1
        self.pacer = ChunkPacer(config.prefill_chunk_seconds)
        self.can_repeat: Callable[[StepPlan], bool] = lambda _: False
        """Whether the rounds of a plan can run as one call; set by the computation of steps."""
        self._plain_rounds = self._draft_rounds = 1
        self.entrance = Entrance(self.seating, self.waiting, self.precedence)
        self._steady = SteadyPlanner(self.seating, self.depths)
        self._by_request = RequestPlanner(self.seating, self.depths, self.entrance)

    @property
    def running(self) -> list[Request]:
        return self.seating.running

    @property
    def draft_policy(self) -> DraftPolicy:
        return self.depths.policy

    @draft_policy.setter
    def draft_policy(self, policy: DraftPolicy) -> None:
        self.depths.policy = policy

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
            request.roll_back()
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
            plan = self._by_request.plan(self.max_tokens, self.pacer, self)
        self._by_request.count(plan)
        return plan

    def _plan_steady(self) -> StepPlan | None:
        """Plans a step in which all requests decode, none may enter and no page is missing; looks at arrays alone."""
        if not self.running or self.entrance.somebody_may_enter():
            return None
        limits = RoundLimits(self._plain_rounds, self._draft_rounds, self.can_repeat)
        return self._steady.plan(self.max_tokens, limits)

    def refuse(self, request: Request, error: Exception) -> None:
        """Ends a waiting request whose controls cannot be taken in."""
        log.warning("request %s could not be seated", request.id, exc_info=error)
        request.finish_reason = FinishReason.ERROR
        request.error = f"the engine could not take this request ({type(error).__name__})"
        self.policy.leave(request)
        self.unfinished.pop(request, None)
        self.refused.append(request)
