"""Keeps the requests that wait, and tells them in the policy's order; knows nothing of why they wait."""

from __future__ import annotations

from bisect import insort
from collections.abc import Hashable, Iterator

from paceline.core.request import Request
from paceline.scheduling.policies import SchedulingPolicy


def _arrival(request: Request) -> tuple[float, int]:
    return request.group.arrival, request.sample_index


class WaitingQueue:
    """A lane's requests lie sorted by arrival, so ranks may change without anything being sorted again."""

    def __init__(self, policy: SchedulingPolicy) -> None:
        self._policy = policy
        self._lanes: dict[Hashable, list[Request]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def __contains__(self, request: Request) -> bool:
        return request in self._lanes.get(self._policy.lane(request), ())

    def __iter__(self) -> Iterator[Request]:
        """From the lowest standing on, by the ranks of the moment; meanwhile requests may come and go."""
        passed: dict[Hashable, int] = {}
        while True:
            heads = [lane[passed.get(name, 0)] for name, lane in self._lanes.items() if passed.get(name, 0) < len(lane)]
            if not heads:
                return
            request = min(heads, key=self._policy.standing)
            yield request
            name = self._policy.lane(request)
            place, lane = passed.get(name, 0), self._lanes.get(name, [])
            if place < len(lane) and lane[place] is request:
                passed[name] = place + 1

    def add(self, request: Request) -> None:
        insort(self._lanes.setdefault(self._policy.lane(request), []), request, key=_arrival)

    def remove(self, request: Request) -> None:
        name = self._policy.lane(request)
        self._lanes[name].remove(request)
        if not self._lanes[name]:
            del self._lanes[name]
