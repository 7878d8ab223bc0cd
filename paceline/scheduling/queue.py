"""Keeps the requests that wait, and tells them in the policy's order; knows nothing of why they wait."""

from __future__ import annotations

from bisect import insort
from collections.abc import Hashable, Iterable, Iterator

from paceline.core.request import Request
from paceline.scheduling.calls import CallSeats, by_arrival
from paceline.scheduling.policies import SchedulingPolicy

Lane = tuple[Hashable, bool]
"""The policy's lane, and whether what stands in it comes behind: its call has a seat, or an earlier one waits."""


class WaitingQueue:
    """Of equal rank the calls without a seat come first, each with its earliest request, then everybody else.

    A lane's requests lie sorted by arrival, so ranks may change without anything being sorted again.
    """

    def __init__(self, policy: SchedulingPolicy, seats: CallSeats) -> None:
        self._policy, self._seats = policy, seats
        seats.changed = self.update_head
        self._lanes: dict[Lane, list[Request]] = {}
        self._calls: dict[Hashable, list[Request]] = {}
        """A call's waiting requests, by arrival."""
        self._heads: dict[Hashable, Request] = {}
        """The one that does not stand behind, of each call without a seat."""

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def __contains__(self, request: Request) -> bool:
        return request in self._calls.get(request.group.call, ())

    def __iter__(self) -> Iterator[Request]:
        """From the lowest standing on, by the ranks of the moment; meanwhile requests may come and go."""
        passed: dict[Lane, int] = {}
        while True:
            heads = [
                (lane[passed.get(name, 0)], name)
                for name, lane in self._lanes.items()
                if passed.get(name, 0) < len(lane)
            ]
            if not heads:
                return
            request, name = min(heads, key=self._standing)
            yield request
            place, lane = passed.get(name, 0), self._lanes.get(name, [])
            if place < len(lane) and lane[place] is request:
                passed[name] = place + 1

    def add(self, request: Request) -> None:
        insort(self._calls.setdefault(request.group.call, []), request, key=by_arrival)
        self._enter(request, behind=True)
        self.update_head(request.group.call)

    def restart(self, requests: Iterable[Request]) -> None:
        """Replaces the waiting requests by these."""
        self._lanes, self._calls, self._heads = {}, {}, {}
        for request in requests:
            self.add(request)

    def remove(self, request: Request) -> None:
        call = request.group.call
        self._calls[call].remove(request)
        if not self._calls[call]:
            del self._calls[call]
        self._leave(request, behind=self._heads.get(call) is not request)
        if self._heads.get(call) is request:
            del self._heads[call]
        self.update_head(call)

    def update_head(self, call: Hashable) -> None:
        """Has the call's earliest request stand before those behind, if the call has no seat, and no other of it."""
        head, waiting = self._heads.get(call), self._calls.get(call)
        wanted = waiting[0] if waiting and not self._seats.has_seat(call) else None
        if head is wanted:
            return
        if head is not None:
            self._leave(head, behind=False)
            self._enter(head, behind=True)
            del self._heads[call]
        if wanted is not None:
            self._leave(wanted, behind=True)
            self._enter(wanted, behind=False)
            self._heads[call] = wanted

    def _standing(self, head: tuple[Request, Lane]) -> tuple[float, bool, float, int]:
        request, (_, behind) = head
        rank, arrival, index = self._policy.standing(request)
        return rank, behind, arrival, index

    def _enter(self, request: Request, *, behind: bool) -> None:
        insort(self._lanes.setdefault((self._policy.lane(request), behind), []), request, key=by_arrival)

    def _leave(self, request: Request, *, behind: bool) -> None:
        name = self._policy.lane(request), behind
        self._lanes[name].remove(request)
        if not self._lanes[name]:
            del self._lanes[name]
