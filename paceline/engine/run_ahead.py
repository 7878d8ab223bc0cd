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
    """Counts passes, and rounds of drafting and verifying, by how long the last ones took."""

    def __init__(self, num_scheduler_steps: int | None) -> None:
        """``num_scheduler_steps``: at most so many passes or rounds, however long they take; None goes by time."""
        self._fixed = num_scheduler_steps
        self._passes, self._rounds = (deque[float](maxlen=REMEMBERED) for _ in range(2))

    @property
    def most_ahead(self) -> int:
        """Tokens that the next plain step may feed as soon as they are sampled."""
        return self._more(self._passes)

    @property
    def more_rounds(self) -> int:
        """Rounds that may follow the first in the next step that drafts."""
        return self._more(self._rounds)

    def _more(self, seconds: deque[float]) -> int:
        if self._fixed is not None:
            return self._fixed - 1
        if len(seconds) < REMEMBERED:
            return 0
        return max(0, min(MOST_PASSES, int(SECONDS / max(seconds))) - 1)

    def record(self, works: Works, num_passes: int, seconds: float) -> None:
        """Takes note of a plain step that made so many passes one behind another."""
        if works.num_known.max() == 1 and num_passes:
            self._passes.append(seconds / num_passes)

    def record_rounds(self, works: Works, num_rounds: int, seconds: float) -> None:
        """Takes note of a step of so many rounds."""
        if works.num_known.max() == 1:
            self._rounds.append(seconds / num_rounds)
