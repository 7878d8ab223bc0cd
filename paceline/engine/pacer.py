"""Knows how long steps took: how many rounds one may make, and what drafting gained beside plain decoding."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from statistics import median

from paceline.core.request import Request
from paceline.core.step import StepPlan

SECONDS = 0.008
"""What a step of several rounds may take: so long may a newcomer wait, and so long may tokens be held back.

A screen shows what is new every 16 ms or so.
"""
MOST_ROUNDS = 16
"""Past this hardly anything is left to gain: what a step costs besides its passes is shared by that many tokens."""
REMEMBERED = 8
"""Steps that say how long a round takes."""
MOST_KEPT = 32
"""Plain steps remembered for each number of requests."""
FEWEST = 8
"""Plain steps without which nothing is estimated."""


class StepPacer:
    """Times decoding steps; those that also read a part of a prompt are left out.

    Each drafted step is compared with the median of plain ones beside which as many requests ran: a plain step would
    have given each request one token, so a step that gave it k tokens stands for k plain ones.
    """

    def __init__(self, num_scheduler_steps: int | None) -> None:
        """``num_scheduler_steps``: so many rounds, however long they take; None goes by time."""
        self._fixed = num_scheduler_steps
        self._plain_rounds, self._draft_rounds = (deque[float](maxlen=REMEMBERED) for _ in range(2))
        self._plain: defaultdict[int, deque[float]] = defaultdict(lambda: deque(maxlen=MOST_KEPT))

    def num_rounds(self, *, drafting: bool) -> int:
        """How many rounds the next step may have."""
        if self._fixed is not None:
            return self._fixed
        seconds = self._draft_rounds if drafting else self._plain_rounds
        if len(seconds) < REMEMBERED:
            return 1
        return max(1, min(MOST_ROUNDS, int(SECONDS / max(seconds))))

    def record(
        self,
        plan: StepPlan,
        new_tokens: Sequence[tuple[Request, int]],
        seconds: float,
        *,
        num_rounds: int = 1,
        drafted: bool = False,
        drafter: bool = True,
    ) -> None:
        """Takes note of a step and of the tokens that it gave to each request.

        ``drafter``: there is one, so that requests want to know what it gains.
        """
        if plan.num_known.max() > 1:
            return
        if num_rounds:
            (self._draft_rounds if drafted else self._plain_rounds).append(seconds / num_rounds)
        if drafter and not any(request.group.pooled is not None for request in plan.requests):
            self._compare(plan, new_tokens, seconds, drafted=drafted)

    def _compare(
        self, plan: StepPlan, new_tokens: Sequence[tuple[Request, int]], seconds: float, *, drafted: bool
    ) -> None:
        if not drafted:
            passes = max((count for _, count in new_tokens), default=1)
            self._plain[len(plan)].append(seconds / max(1, passes))
        plain = self._plain_seconds(len(plan)) if drafted else None
        for request, count in new_tokens:
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
