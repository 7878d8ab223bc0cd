"""Knows how many calls are in progress, of whom, and whether one more may begin; nothing of what a call is."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, field

from paceline.core.service_config import Limits
from paceline.server.errors import ApiError

LONGEST_RETRY = 60
CODES = {"max_requests": "overloaded", "max_requests_per_key": "rate_limit_exceeded"}
"""The limit that is reached -> the error's code."""
_WEIGHT = 0.2
"""Of the newest call in the mean duration."""


class Limiter:
    """A bounded queue: a call is admitted at once or told when to come again. A place is one answer in progress."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.draining = False
        """True once the service is ending: calls in progress go on, no more begin."""
        self.num_active = 0
        self._per_client: Counter[str] = Counter()
        self._mean_seconds = 1.0
        self._num_refused = 0
        """Since a place was last given back: who is refused later is told to come later."""

    def enter(self, client: str, places: int = 1, *, held: int = 0) -> None:
        """Takes places beside those that the call holds; all are given back by ``leave``.

        A call that asks for more places than there are is admitted where it has no company.

        Raises:
            ApiError: 503 while draining, 429 if the server or the client's share is full; both say when to retry.
        """
        if self.draining and not held:
            raise ApiError(
                503, "the server is shutting down", code="draining", headers=_retry(self.limits.drain_seconds)
            )
        if self.num_active > held and self.num_active + places > self.limits.max_requests:
            raise self._full(
                "the server is full", "max_requests", self.limits.max_requests, held + places, self.num_active
            )
        share, mine = self.limits.max_requests_per_key, self._per_client[client]
        if client and share is not None and mine > held and mine + places > share:
            raise self._full("this key's share is taken", "max_requests_per_key", share, held + places, mine)
        self.num_active += places
        self._per_client[client] += places

    def leave(self, client: str, places: int, seconds: float) -> None:
        self.num_active -= places
        self._per_client[client] -= places
        if not self._per_client[client]:
            del self._per_client[client]
        self._mean_seconds += _WEIGHT * (seconds - self._mean_seconds)
        self._num_refused = 0

    def _full(self, why: str, limit: str, most: int, places: int, num_active: int) -> ApiError:
        """A place is expected every mean duration / calls in progress; those refused before come first."""
        self._num_refused += 1
        asked = "this call asks for one" if places == 1 else f"this call asks for {places}, n for each prompt"
        return ApiError(
            429,
            f"{why}: at most {most} answers may be in progress ({limit}), {asked}\n"
            f"Try again after the seconds of Retry-After{'' if places == 1 else ', or with fewer prompts'}.",
            code=CODES[limit],
            headers=_retry(self._num_refused * self._mean_seconds / num_active),
        )


def _retry(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(min(max(math.ceil(seconds), 1), LONGEST_RETRY))}


@dataclass(slots=True)
class Visit:
    """One HTTP request from its first byte to the last of its answer: who sent it, and what it cost."""

    id: str
    admission: Limiter
    client: str = ""
    """A digest of the API key, or "" where there are no keys."""
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    ignored_fields: list[str] = field(default_factory=list)
    """Unknown fields of the body, which the answer's headers name."""
    began: float = field(default_factory=time.monotonic)
    _admitted: float = 0.0
    _places: int = 0

    def admit(self, places: int = 1) -> None:
        """Sees to it that this call has so many places among those in progress, until ``close``.

        Raises:
            ApiError: as ``Limiter.enter``.
        """
        if self._places == 0:
            self._admitted = time.monotonic()
        if places > self._places:
            self.admission.enter(self.client, places - self._places, held=self._places)
            self._places = places

    def close(self) -> None:
        if self._places:
            self.admission.leave(self.client, self._places, time.monotonic() - self._admitted)
            self._places = 0
