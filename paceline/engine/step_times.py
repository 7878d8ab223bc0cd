"""Knows how long decoding steps took with and without drafts, and what that says of a call's speed-up."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from statistics import median

from paceline.core.batch import Drafts, Works
from paceline.core.request import Request

MOST_KEPT = 32
"""Plain steps remembered for each number of requests."""
FEWEST = 8
"""Plain steps without which nothing is estimated."""


class StepTimes:
    """Compares each drafted step with the median of plain ones beside which as many requests ran.

    A plain step would have given each request one token, so a step that gave it k tokens stands for k plain ones.
    Only decoding counts: a step that also reads a part of a prompt is left out on both sides.
    """

    def __init__(self) -> None:
        self._plain: defaultdict[int, deque[float]] = defaultdict(lambda: deque(maxlen=MOST_KEPT))

    def record(self, works: Works, drafts: Drafts, kept: Sequence[tuple[Request, int]], seconds: float) -> None:
        """``kept``: how many tokens the step gave to each request; without drafts, each took a pass."""
        if works.num_known.max() > 1 or any(request.group.pooled is not None for request in works.requests):
            return
        drafted = bool(drafts.counts.any())
        if not drafted:
            passes = max((count for _, count in kept), default=1)
            self._plain[len(works)].append(seconds / max(1, passes))
        plain = self._plain_seconds(len(works)) if drafted else None
        for request, count in kept:
            comparison = request.comparison
            comparison.step_seconds += seconds
            if not drafted:
                comparison.plain_seconds += seconds
            elif plain is not None:
                comparison.plain_seconds += plain * count
            else:
                comparison.complete = False

    def _plain_seconds(self, num_requests: int) -> float | None:
        known = self._plain[num_requests]
        return median(known) if len(known) >= FEWEST else None


def estimated_speedup(members: Iterable[Request]) -> float | None:
    """How many times longer the members' steps would have taken plainly; None without drafts or a measurement."""
    drafted = [member for member in members if member.num_drafted]
    steps = sum(member.comparison.step_seconds for member in drafted)
    if not steps or not all(member.comparison.complete for member in drafted):
        return None
    return sum(member.comparison.plain_seconds for member in drafted) / steps
