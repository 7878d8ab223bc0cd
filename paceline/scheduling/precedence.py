"""Who of the running goes first and who gives way: the policy's ranks, and within a rank a seat for every call."""

from __future__ import annotations

from collections.abc import Iterable

from paceline.core.request import Request
from paceline.scheduling.calls import CallSeats
from paceline.scheduling.policies import SchedulingPolicy


class Precedence:
    """A call's earliest request goes before the spare ones of all calls of its rank, and these give way first."""

    def __init__(self, policy: SchedulingPolicy) -> None:
        self.policy, self.calls = policy, CallSeats()

    def standing(self, request: Request) -> tuple[float, bool, float, int]:
        """Of a running request: the lowest is served first, the highest gives way first."""
        rank, arrival, index = self.policy.standing(request)
        return rank, self.calls.is_spare(request), arrival, index

    def displaceable(self, request: Request, running: Iterable[Request]) -> list[Request]:
        """Running requests whose place this waiting one may take, first those that give way first.

        Those of a worse rank, where the policy says so; and to a call without a seat, those that are spare, unless
        their rank is better.
        """
        needy = bool(self.calls.num_spare) and not self.calls.has_seat(request.group.call)
        if not (needy or self.policy.displaces):
            return []
        rank = self.policy.standing(request)[0]

        def gives_way(other: Request) -> bool:
            others = self.policy.standing(other)[0]
            worse = self.policy.displaces and others > rank
            return worse or (needy and others >= rank and self.calls.is_spare(other))

        return sorted(filter(gives_way, running), key=self._dispensability, reverse=True)

    def _dispensability(self, request: Request) -> tuple[float, int, float, int]:
        """As ``standing``, but of spare ones those first whose call has the most seats."""
        rank, spare, arrival, index = self.standing(request)
        return rank, self.calls.num_seats(request.group.call) if spare else 0, arrival, index
