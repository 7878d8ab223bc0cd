"""Shares the engine between clients by the tokens that each was served."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from paceline.core.request import Request
from paceline.scheduling.policies.base import SchedulingPolicy, policies

PROMPT_WEIGHT = 1
OUTPUT_WEIGHT = 2
"""An output token takes a share of a step of its own; the weights are those of the paper."""


@policies.add("fair")
class FairShare(SchedulingPolicy):
    """Virtual token counters (Sheng et al. 2023, arXiv 2401.00588): the client that was served least goes first.

    A client pays for the prompt tokens that had to be computed, once per call, and for its output tokens; what
    preemption computes again is nobody's debt. A client that comes back, or comes new, starts no lower than the least
    served active one, so that idling earns no credit.

    Promise: between clients that always have requests waiting, the cost served differs by a bounded amount, however
    many requests each has sent; a client's own requests are served by arrival, so everybody is served in the end.
    A newcomer gets the next seat that falls free, and none is taken away but from a call that has several. Where
    memory runs short, the latest request of the client that was served most gives way.
    """

    accounts = True

    def __init__(self) -> None:
        self._cost: dict[Hashable, float] = {}
        self._active: Counter[Hashable] = Counter()
        """Unfinished requests by client."""
        self._floor = 0.0
        """What the least served active client had, when that was last looked at."""
        self._paid: dict[Request, int] = {}
        """Output tokens that a request has paid for; its prompt is paid for once it is in here."""

    def lane(self, request: Request) -> Hashable:
        return request.group.client

    def rank(self, lane: Hashable) -> float:
        return self._cost.get(lane, self._floor)

    def arrive(self, request: Request) -> None:
        client = request.group.client
        if not self._active[client]:
            self._floor = min((self._cost[other] for other in self._active), default=self._floor)
            self._cost[client] = max(self._cost.get(client, 0.0), self._floor)
        self._active[client] += 1

    def serve(self, request: Request) -> None:
        paid, output = self._paid.get(request), len(request.output_token_ids)
        cost = OUTPUT_WEIGHT * (output - (paid or 0))
        if paid is None and request.sample_index == 0:
            shown = max(0, len(request.prompt_token_ids) - request.num_dropped)
            cost += PROMPT_WEIGHT * (shown - request.num_cached_tokens)
        self._paid[request] = output
        self._cost[request.group.client] += cost

    def leave(self, request: Request) -> None:
        if request in self._paid:
            self.serve(request)
            del self._paid[request]
        client = request.group.client
        self._active[client] -= 1
        if not self._active[client]:
            del self._active[client]
            self._floor = min((self._cost[other] for other in self._active), default=self._cost[client])
            self._forget()

    def restart(self, requests: Sequence[Request]) -> None:
        self._active = Counter(request.group.client for request in requests)
        for client in self._active:
            self._cost.setdefault(client, self._floor)
        self._paid = {request: self._paid[request] for request in requests if request in self._paid}

    def _forget(self) -> None:
        """Drops idle clients that would start at the floor anyway, so that memory follows the active ones."""
        if len(self._cost) > 2 * len(self._active) + 64:
            self._cost = {
                client: cost for client, cost in self._cost.items() if client in self._active or cost > self._floor
            }
