"""Knows what prompt rows cost, measured step by step, and how many of them a step may take beside decoding requests."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import accumulate, pairwise
from statistics import median

FIRST_ROWS = 64
"""Prompt rows of a step before anything was measured."""
FEWEST_ROWS = 16
"""So many rows cost hardly more than one while reading weights dominates; with fewer a prompt would not end."""
LONE_SECONDS = 1.0
"""Longest step of prompts while no request decodes: aborts and new requests wait for its end."""
KEPT = 3
"""Steps remembered of each size; sizes double."""
OUTDATED = 16
"""Steps with prompt rows after which a size that no step had since is forgotten: it may have been a hiccup's."""
PLAIN_KEPT = 8
NO_BOUND = 2**31 - 1


class ChunkPacer:
    """Sizes the chunks of prompts so that they make a step longer by a target at most while anybody decodes.

    Costs are seconds of a whole step by its prompt rows, and taken to rise with them.
    """

    def __init__(self, target_seconds: float) -> None:
        """``target_seconds``: what prompts may add to a step; 0 is no bound."""
        self.target_seconds = target_seconds
        self._plain: deque[float] = deque(maxlen=PLAIN_KEPT)
        """Seconds of steps without prompt rows."""
        self._steps: dict[int, deque[tuple[int, float]]] = {}
        """(prompt rows, seconds) of steps, by the bits of the number of rows."""
        self._last: dict[int, int] = {}
        """Of each of these sizes: the number of its latest step."""
        self._num_steps = 0

    def record(self, num_rows: int, seconds: float) -> None:
        """Takes note of a step with so many prompt rows; of one without any, the seconds of one pass or round."""
        if not num_rows:
            self._plain.append(seconds)
            return
        if num_rows < FEWEST_ROWS:  # it says what a step costs, and little of what rows do
            return
        size = num_rows.bit_length()
        self._steps.setdefault(size, deque(maxlen=KEPT)).append((num_rows, seconds))
        self._num_steps += 1
        self._last[size] = self._num_steps
        for other in [other for other, number in self._last.items() if self._num_steps - number >= OUTDATED]:
            del self._last[other], self._steps[other]

    def most_rows(self, *, decoding: bool = True) -> int:
        """Prompt rows that the next step may take, if anybody decodes in it or if nobody does.

        Of the latter a power of two: a machine that is a little slower today has the same chunks.
        """
        if not self.target_seconds:
            return NO_BOUND
        costs = self.costs()
        if not costs:
            return FIRST_ROWS
        if not decoding:
            rows = max(FEWEST_ROWS, min(NO_BOUND, int(_rows_for(LONE_SECONDS, costs))))
            return 1 << (rows.bit_length() - 1)
        room = self.target_seconds + (median(self._plain) if self._plain else 0.0)
        return max(FEWEST_ROWS, min(NO_BOUND, int(_rows_for(room, costs))))

    def costs(self) -> list[tuple[int, float]]:
        """(prompt rows, seconds) of a step, of each size that is known; both rise."""
        found = [_usual(steps) for steps in self._steps.values()]
        rows, seconds = zip(*sorted(found), strict=True) if found else ((), ())
        return list(zip(rows, accumulate(seconds, max), strict=True))


def _usual(steps: Iterable[tuple[int, float]]) -> tuple[int, float]:
    """The one in the middle by what a row cost, of two the cheaper: where buffers had to grow the first one paid."""
    by_rate = sorted(steps, key=lambda step: step[1] / step[0])
    return by_rate[(len(by_rate) - 1) // 2]


def _rows_for(room: float, costs: list[tuple[int, float]]) -> float:
    """The rows of a step of ``room`` seconds: between two known costs, or in proportion to the nearest.

    In proportion is too few rather than too many: a pass costs something besides its rows.
    """
    for (rows, seconds), (more, longer) in pairwise(costs):
        if seconds <= room < longer:
            return rows + (more - rows) * (room - seconds) / (longer - seconds)
    rows, seconds = costs[0] if room < costs[0][1] else costs[-1]
    return rows * room / max(seconds, 1e-9)
