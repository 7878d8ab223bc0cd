"""Knows how often and how soon an engine that died is started again; knows nothing of processes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """At most ``max_restarts`` within ``window_seconds``; the delay doubles with each of them."""

    max_restarts: int = 5
    window_seconds: float = 600.0
    first_delay: float = 0.25
    longest_delay: float = 15.0


class Restarts:
    """The restarts so far, and what follows from them."""

    def __init__(self, policy: RestartPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self.policy, self._clock = policy, clock
        self._recent: deque[float] = deque()

    def next_delay(self) -> float | None:
        """Seconds to wait before the restart that is now due, which counts as made; None if there were too many."""
        now = self._clock()
        while self._recent and now - self._recent[0] > self.policy.window_seconds:
            self._recent.popleft()
        if len(self._recent) >= self.policy.max_restarts:
            return None
        self._recent.append(now)
        delay: float = min(self.policy.longest_delay, self.policy.first_delay * 2.0 ** (len(self._recent) - 1))
        return delay
