"""Whether a waiting request may enter, and whose places it needs for that; changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.core.request import Request
from paceline.scheduling.precedence import Precedence
from paceline.scheduling.queue import WaitingQueue
from paceline.scheduling.seating import Seating


class Entrance:
    """Seats and pages, free or taken, as a waiting request sees them."""

    def __init__(self, seating: Seating, waiting: WaitingQueue, precedence: Precedence) -> None:
        self.waiting, self.precedence = waiting, precedence
        self._seating, self._seats, self._cache = seating, seating.seats, seating.cache

    def somebody_may_enter(self) -> bool:
        """Whether the first who waits might find a seat; pages are another question."""
        if not self.waiting:
            return False
        if self._seats.num_free:
            return True
        return bool(self.precedence.displaceable(next(iter(self.waiting)), self._seating.running))

    def must_wait_for_sibling(self, request: Request) -> bool:
        """Whether a running member of its group still computes the prompt, whose pages it can share after that."""
        source = self._seating.sibling(request)
        return source is not None and self._seating.num_shared(source) > self._seating.num_cached(source)

    def victims(self, request: Request) -> list[Request] | None:
        """Requests that must give way for a waiting one, often none; None if it cannot enter even so."""
        displaceable = self.precedence.displaceable(request, self._seating.running)
        victims: list[Request] = []
        while not (self._seats.num_free + len(victims) and self._fits(request, victims)):
            if len(victims) == len(displaceable):
                return None
            victims = displaceable[: len(victims) + 1]
        return victims

    def _fits(self, request: Request, victims: Sequence[Request]) -> bool:
        """Whether free pages, with the victims', would hold all it knows; alone, a request always may start.

        Pages that only the prefix index holds count as free, though some may hang on others' prefixes: who enters and
        finds none after all goes on waiting, at nobody's cost.
        """
        if len(victims) == len(self._seating.running):
            return True
        shared = self._seating.num_shared(request) if self._seating.sibling(request) is not None else 0
        seats = np.array([victim.seat for victim in victims], dtype=np.int32)
        return all(
            group.num_missing(request.num_tokens - request.num_dropped + 1, shared)
            <= group.pages.num_free + group.pages.num_cached + group.num_released(seats)
            for group in (self._cache.groups[index] for index in self._seating.groups_of(request))
        )
