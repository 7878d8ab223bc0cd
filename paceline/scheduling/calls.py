"""Counts the seats of each call, and tells which are spare. Does not decide who gets them."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Hashable

from paceline.core.request import Request


def by_arrival(request: Request) -> tuple[float, int]:
    return request.group.arrival, request.sample_index


def _nothing(_call: Hashable) -> None:
    pass


class CallSeats:
    """Seated requests by the call that they came with: answers of one prompt, or of several prompts.

    The earliest of a call is the one that it keeps; every other is spare, and gives way to a call that has no seat.
    """

    def __init__(self) -> None:
        self.changed: Callable[[Hashable], None] = _nothing
        """Called with a call that has just got its first seat, or lost its last."""
        self.clear()

    def clear(self) -> None:
        """Empties all seats, without telling anybody."""
        self._seated: dict[Hashable, list[Request]] = {}
        self.num_spare = 0

    def sit(self, request: Request) -> None:
        seated = self._seated.setdefault(request.group.call, [])
        insort(seated, request, key=by_arrival)
        if len(seated) == 1:
            self.changed(request.group.call)
        else:
            self.num_spare += 1

    def rise(self, request: Request) -> None:
        call = request.group.call
        self._seated[call].remove(request)
        if self._seated[call]:
            self.num_spare -= 1
        else:
            del self._seated[call]
            self.changed(call)

    def has_seat(self, call: Hashable) -> bool:
        return call in self._seated

    def num_seats(self, call: Hashable) -> int:
        return len(self._seated.get(call, ()))

    def is_spare(self, request: Request) -> bool:
        """Whether this seated request's call would still have a seat without it."""
        return self._seated[request.group.call][0] is not request
