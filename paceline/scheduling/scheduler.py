"""The one scheduling rule: let the cache catch up with what is known, within a token budget, plus a draft."""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from paceline.cache import CacheManager
from paceline.core.batch import Int32, Works
from paceline.core.config import EngineConfig
from paceline.core.request import FinishReason, Request
from paceline.core.seats import Seats
from paceline.sampling import SamplingState
from paceline.scheduling.policies import policies
from paceline.speculation import Proposer


@dataclass(slots=True)
class Share:
    """What one request gets in the step being planned."""

    start: int
    num_known: int
    depth: int


class Scheduler:
    """Owns the waiting and running requests and their seats; the cache follows its orders."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        seats: Seats,
        cache: CacheManager,
        sampling: SamplingState,
        proposer: Proposer | None,
        target_groups: Sequence[int],
    ) -> None:
        self.config, self.seats, self.cache, self.sampling, self.proposer = config, seats, cache, sampling, proposer
        self.target_groups = list(target_groups)
        self.all_groups = list(range(len(cache.groups)))
        self.order: Callable[[Request], tuple[float, ...]] = policies[config.scheduling_policy]().order
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.num_preemptions = 0
        self.max_depth = config.speculative.num_speculative_tokens if config.speculative and proposer else 0
        # A cache that forgets must see whole sequences, so only the number of seats bounds its steps.
        self.max_tokens = config.max_num_batched_tokens if cache.kind.retains else 2**31 - 1
        self._last_slot = np.zeros(seats.capacity, dtype=np.int32)
        self._depth = np.zeros(seats.capacity, dtype=np.int32)
        self._running_seats: Int32 = np.zeros(0, dtype=np.int32)

    def add(self, request: Request) -> None:
        insort(self.waiting, request, key=self.order)

    def remove(self, request: Request) -> None:
        """Takes a finished or aborted request out, wherever it is, and gives back all it held."""
        if request.seat >= 0:
            self._vacate(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    @property
    def num_unfinished(self) -> int:
        return len(self.waiting) + len(self.running)

    def plan(self) -> Works:
        """The works of the next step; pages for their slots, drafts included, are reserved."""
        steady = self._plan_steady()
        if steady is not None:
            return steady
        shares: dict[Request, Share] = {}
        budget, preempted = self.max_tokens, self.num_preemptions
        order = self._running_order()
        for place, request in enumerate(order, 1):
            budget -= self._share(request, budget, shares, others=len(order) - place)
        if self.num_preemptions == preempted:  # else whoever gave way would come straight back
            self._admit(budget, shares)
        return self._works(shares)

    def _plan_steady(self) -> Works | None:
        """The plan when everybody decodes, nobody waits and no page is missing, without looking at requests."""
        if not self.running or (self.waiting and self.seats.num_free):
            return None
        seats = self._running_seats
        known = self.seats.num_tokens[seats]
        start = self._cached(seats)
        depth = np.minimum(self._depth[seats], self._last_slot[seats] - known).clip(0)
        ends = known + self._num_nodes(depth)
        steady = (known - start == 1).all() and int((ends - start).sum()) <= self.max_tokens
        if not (steady and self.cache.holds(seats, ends)):
            return None
        return Works(list(self.running), seats, start, known - start, depth)

    def _cached(self, seats: Int32) -> Int32:
        return self.cache.groups[self.target_groups[0]].num_cached[seats]

    def _num_nodes(self, depth: Int32) -> Int32:
        if self.proposer is None or not depth.any():
            return np.zeros_like(depth)
        table = np.array([self.proposer.num_nodes(d) for d in range(self.max_depth + 1)], dtype=np.int32)
        nodes: Int32 = table[depth]
        return nodes

    def _running_order(self) -> list[Request]:
        """Decoding requests before prefilling ones, so that a long prompt never stalls the others."""
        pending = {request: self._pending(request) for request in self.running}
        return sorted(self.running, key=lambda request: pending[request] > 1)

    def _pending(self, request: Request) -> int:
        return int(self.seats.num_tokens[request.seat]) - int(self._cached(request.seat))  # type: ignore[arg-type]

    def _share(self, request: Request, budget: int, shares: dict[Request, Share], others: int = 0) -> int:
        """Gives a seated request its share of the step; returns the tokens it takes (0: it must sit this one out).

        No draft takes the row that each of the ``others`` still to be served needs to go on.
        """
        if request.seat < 0 or budget <= 0:
            return 0
        seat, pending = request.seat, self._pending(request)
        start = int(self.seats.num_tokens[seat]) - pending
        known = min(pending, budget)
        depth, nodes = self._draft_of(request, budget - known - others) if known == pending else (0, 0)
        if nodes and self.cache.reserve(seat, start + known + nodes, self.groups_of(request)):
            shares[request] = Share(start, known, depth)
            return known + nodes
        if not self._reserve(request, start + known, shares):
            return 0
        shares[request] = Share(start, known, 0)
        return known

    def _draft_of(self, request: Request, budget: int) -> tuple[int, int]:
        """How deep a draft may be and how many nodes it takes; (0, 0) if none is of use or the budget is short."""
        room = int(self._last_slot[request.seat]) - int(self.seats.num_tokens[request.seat])
        depth = min(int(self._depth[request.seat]), room)
        if self.proposer is None or depth <= 0:
            return 0, 0
        nodes = self.proposer.num_nodes(depth)
        return (depth, nodes) if nodes <= budget else (0, 0)

    def groups_of(self, request: Request) -> list[int]:
        return self.all_groups if request.group.speculate else self.target_groups

    def _reserve(self, request: Request, end: int, shares: dict[Request, Share]) -> bool:
        """Reserves slots, preempting the last in order until it works; False if that was the request itself."""
        while not self.cache.reserve(request.seat, end, self.groups_of(request)):
            victim = max(self.running, key=self.order)
            shares.pop(victim, None)
            self.preempt(victim)
            if victim is request:
                return False
        return True

    def preempt(self, request: Request) -> None:
        """Sends a running request back to wait; it keeps its tokens and recomputes their K/V later."""
        self._vacate(request)
        request.num_preemptions += 1
        self.num_preemptions += 1
        self.add(request)

    def _vacate(self, request: Request) -> None:
        seat = request.seat
        # Only a token sampled from all that is cached proves it finite; NaN must not reach the pages' next owner.
        if self._pending(request) != 1 and request.finish_reason not in (FinishReason.STOP, FinishReason.LENGTH):
            self.cache.clear(seat)
        else:
            self.publish(request)
            self.cache.release(seat)
        if self.proposer is not None:
            self.proposer.forget(seat)
        self.sampling.leave(seat)
        self.seats.leave(request)
        self.running.remove(request)
        self._list_seats()

    def _list_seats(self) -> None:
        self._running_seats = np.array([request.seat for request in self.running], dtype=np.int32)

    def _admit(self, budget: int, shares: dict[Request, Share]) -> None:
        for request in list(self.waiting):
            if budget <= 0 or not self.seats.num_free:
                return
            source = self._sibling(request)
            if source is not None and self._pending_prompt(source) > 1:
                continue  # its prompt is being computed: the pages can be shared once that is done
            if not self._fits(request):
                return
            self.waiting.remove(request)
            self._seat(request, source)
            taken = self._share(request, budget, shares)
            budget -= taken
            if not taken:
                return

    def _sibling(self, request: Request) -> Request | None:
        """A running member of the same group whose prompt pages this one could share."""
        if not self.cache.kind.retains or self._needs_prompt_rows(request):
            return None
        return next((member for member in request.group.members if member.seat >= 0), None)

    @staticmethod
    def _needs_prompt_rows(request: Request) -> bool:
        """Whether something is made of its prompt's rows that no cache holds, so that they must be computed."""
        logprobs, pooled = request.group.prompt_logprobs, request.group.pooled
        if pooled is not None and pooled.next_row < len(request.prompt_token_ids) - 1:
            return True
        return request.sample_index == 0 and logprobs is not None and None in logprobs[1:]

    def _pending_prompt(self, request: Request) -> int:
        return len(request.prompt_token_ids) - int(self._cached(request.seat))  # type: ignore[arg-type]

    def _fits(self, request: Request) -> bool:
        """Whether free pages would hold all its known tokens; alone, a request always may start."""
        if not self.running:
            return True
        groups = [self.cache.groups[index] for index in self.groups_of(request)]
        # Pages that only the prefix index holds are as good as free: they are evicted on demand.
        return all(
            -(-(request.num_tokens + 1) // group.page_size) <= group.pages.num_free + group.pages.num_cached
            for group in groups
        )

    def _seat(self, request: Request, source: Request | None) -> None:
        seat = self.seats.join(request)
        if request.group.seated_at is None:
            request.group.seated_at = time.monotonic()
        self.sampling.join(request)
        self.running.append(request)
        self._list_seats()
        # The last token's logits lie this side of max_new_tokens: a draft that goes further cannot be used.
        self._last_slot[seat] = len(request.prompt_token_ids) + request.max_new_tokens - 1
        self._depth[seat] = self.max_depth if request.group.speculate else 0
        self._share_prefix(request, source)

    def _share_prefix(self, request: Request, source: Request | None) -> None:
        """Starts a fresh seat with what others have cached of its tokens; at least one is left to compute."""
        seat, shared = request.seat, len(request.prompt_token_ids) - 1
        if source is not None and self.cache.can_fork(source.seat, shared, self.groups_of(request)):
            self.cache.fork(source.seat, seat, shared, self.groups_of(request))
        elif not self._needs_prompt_rows(request):
            known = self.seats.tokens[seat, : self.seats.num_tokens[seat] - 1]
            groups = self.groups_of(request)
            found = self.cache.attach_prefix(seat, known, request.group.prefix_salt, groups, self.target_groups)
            if not request.num_preemptions:
                request.num_cached_tokens = min(found, len(request.prompt_token_ids))

    def publish(self, request: Request) -> None:
        """Offers a seated request's full pages to the prefix index."""
        seat = request.seat
        self.cache.publish_prefix(
            seat, self.seats.tokens[seat, : self.seats.num_tokens[seat]], request.group.prefix_salt
        )

    def _works(self, shares: dict[Request, Share]) -> Works:
        chosen = list(shares.items())
        columns = np.array([(r.seat, s.start, s.num_known, s.depth) for r, s in chosen], dtype=np.int32).reshape(-1, 4)
        return Works([request for request, _ in chosen], *np.ascontiguousarray(columns.T))
