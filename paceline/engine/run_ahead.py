"""Knows how many passes one plain step may make: as many as are over before anybody could feel them."""

from __future__ import annotations

from collections import deque

from paceline.core.batch import Works

SECONDS = 0.008
"""What a step of several passes may take: so long may a newcomer wait, and so long may tokens be held back.

A screen shows what is new every 16 ms or so.
"""
MOST_PASSES = 8
"""Past this hardly anything is left to gain: what a step costs besides its passes is shared by that many tokens."""
REMEMBERED = 8


class RunAhead:
    """Counts passes by how long the last ones took."""

    def __init__(self, num_scheduler_steps: int | None) -> None:
        """``num_scheduler_steps``: at most so many passes, however long they take; None goes by time."""
        self._fixed = num_scheduler_steps
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)

    @property
    def most_ahead(self) -> int:
        """Tokens that the next plain step may feed as soon as they are sampled."""
        if self._fixed is not None:
            return self._fixed - 1
        if len(self._seconds) < REMEMBERED:
            return 0
        return max(0, min(MOST_PASSES, int(SECONDS / max(self._seconds))) - 1)

    def record(self, works: Works, num_passes: int, seconds: float) -> None:
        """Takes note of a step that made so many passes one behind another."""
        if works.num_known.max() == 1 and num_passes:
            self._seconds.append(seconds / num_passes)
