"""What a scheduling policy is: lanes of requests and a rank of each lane; knows nothing of seats and pages."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from paceline.core.registry import Registry
from paceline.core.request import Request

Standing = tuple[float, float, int]
"""(rank, arrival, sample index): the lowest is served first, the highest gives way first."""


class SchedulingPolicy:
    """Serves lanes by their rank, and each lane by arrival.

    The waiting request of the lowest standing is admitted first, and no other before it. Where memory runs short, the
    running one of the highest standing is preempted. Where the token budget is short, running requests of equal rank
    take turns. At equal rank, a call that has no seat goes before the rest of a call that has one, and takes a seat
    that such a call could do without.
    """

    displaces: bool = False
    """Whether a waiting request may take the seat or pages of a running one of higher rank."""
    accounts: bool = False
    """Whether ranks depend on what requests were served, so that ``serve`` must be called."""

    def lane(self, request: Request) -> Hashable:  # noqa: ARG002
        """Which lane a request stands in; never changes while it lives."""
        return None

    def rank(self, lane: Hashable) -> float:  # noqa: ARG002
        """Lower goes first; may change from step to step."""
        return 0.0

    def standing(self, request: Request) -> Standing:
        return self.rank(self.lane(request)), request.group.arrival, request.sample_index

    def arrive(self, request: Request) -> None:
        """A new request waits."""

    def serve(self, request: Request) -> None:
        """A request has its seat, and perhaps more tokens than at the last call."""

    def leave(self, request: Request) -> None:
        """A request that arrived is finished or aborted."""

    def restart(self, requests: Sequence[Request]) -> None:
        """Starts over with these requests, whatever an exception left half done."""


policies: Registry[type[SchedulingPolicy]] = Registry("scheduling_policy")
