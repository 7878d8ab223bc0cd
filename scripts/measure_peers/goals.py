"""Knows the goals of speed that this comparison decides, and whether what was measured meets them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scripts.measure_peers.table import Column

BANDWIDTH, BEST = "the probed bandwidth", "the best peer"


@dataclass(frozen=True, slots=True)
class Goal:
    """Ours at some kind of weights must be so many times something."""

    part: str
    kinds: tuple[str, ...]
    """Kinds of our weights that count, the fastest of them; none stands for all."""
    over: str
    least: float

    @property
    def title(self) -> str:
        return f"{self.part}, {' or '.join(self.kinds) or 'our fastest'}, over {self.over}"


GOALS = (
    Goal("M batch 1", ("int8",), BANDWIDTH, 0.9),
    Goal("M batch 1", ("bf16",), BANDWIDTH, 0.9),
    Goal("M batch 1", ("int8",), "llama.cpp-q8_0", 1.5),
    Goal("M batch 1", ("bf16",), "llama.cpp-bf16", 1.2),
    Goal("M batch 1", ("int8",), "transformers", 4.0),
    Goal("M batch 1", ("bf16",), "transformers", 4.0),
    Goal("M batch 1", ("int4",), "llama.cpp-q4_0", 1.2),
    Goal("S batch 1", ("int8",), "llama.cpp-q8_0", 1.2),
    Goal("M batch 8", (), BEST, 1.3),
    Goal("S batch 8", (), BEST, 1.3),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a goal."""

    goal: Goal
    found: float | None = None
    """Median."""
    range: tuple[float, float] | None = None
    who: str = ""
    reason: str = ""
    """Why nothing was found."""

    @property
    def holds(self) -> bool | None:
        return None if self.found is None else self.found >= self.goal.least

    def line(self) -> str:
        if self.found is None or self.range is None:
            return f"not measured  {self.goal.title} >= {self.goal.least:g}: {self.reason}"
        low, high = self.range
        figure = f"{self.found:.2f} [{low:.2f}, {high:.2f}] of {self.goal.least:g} wanted ({self.who})"
        if self.holds:
            return f"holds         {self.goal.title}: {figure}"
        return (
            f"missed        {self.goal.title}: {figure}; {self.goal.least / self.found:.2f} times the speed is needed"
        )


def verdict(goal: Goal, found: Mapping[str, Column]) -> Verdict:
    """Of one goal, by the columns under their titles."""
    column = found.get(goal.part)
    if column is None:
        return Verdict(goal, reason="no round of it")
    mine = column.names(ours=True, kinds=goal.kinds)
    if not mine:
        return Verdict(goal, reason="no such configuration of ours took part")
    if goal.over == BANDWIDTH:
        share = column.of_bandwidth(mine[0])
        if share is None:
            return Verdict(goal, reason="nothing was decoded")
        return Verdict(goal, share.median, (share.low, share.high), mine[0])
    others = column.names(ours=False)
    other = others[0] if goal.over == BEST and others else goal.over
    if other not in column.speeds:
        return Verdict(goal, reason=column.point.get("missing", {}).get(other, "it did not take part"))
    ratio = column.ratio(mine[0], other)
    return Verdict(goal, ratio.median, (ratio.low, ratio.high), f"{mine[0]} over {other}")


def verdicts(columns: Sequence[Column], goals: Sequence[Goal] = GOALS) -> list[Verdict]:
    """Of every goal; where several files hold a part the last one counts."""
    found = {column.title: column for column in columns}
    return [verdict(goal, found) for goal in goals]
