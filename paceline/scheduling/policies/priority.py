"""Lower priority numbers first, as in vLLM."""

from __future__ import annotations

from collections.abc import Hashable

from paceline.core.request import Request
from paceline.scheduling.policies.base import SchedulingPolicy, policies


@policies.add("priority")
class Priority(SchedulingPolicy):
    """A lane per priority; the lowest number goes first, ties by arrival.

    Promise: a request never waits for one of a worse priority. Where seats or pages are short it takes those of the
    worst running one, of several the latest. Among equals nobody is passed over. There is no ageing: a request of a
    bad priority waits for as long as better ones keep coming; what must not starve needs the policy "fair".
    """

    displaces = True

    def lane(self, request: Request) -> Hashable:
        return request.group.priority

    def rank(self, lane: Hashable) -> float:
        assert isinstance(lane, int)
        return lane
