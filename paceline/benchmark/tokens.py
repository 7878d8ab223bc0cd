"""Knows what the times at which tokens came say; nothing of who made them.

A step may yield several tokens at once. They get one time each, the same one, and these definitions:

- time to first token: from the request's start to its first token. What comes in that same first step comes with it.
- inter-token latency: the step's wait, shared among its tokens. A step that yields four tokens 40 ms after the step
  before gives four latencies of 10 ms, not one of 40 and three of 0. Tokens of the first step have none.
- step latency: the whole wait, once per step after the first: the pause that a reader sees. Its maximum is the worst
  gap of all streams.
- time per output token: as vLLM defines it, (last - first) / (number - 1). Speculation flatters it a little, as the
  first step's further tokens count and cost nothing; inter-token latency does not.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from paceline.benchmark.statistics import percentiles


@dataclass(frozen=True, slots=True)
class TokenTimes:
    """When one answer's tokens came, in seconds on one clock."""

    start: float
    """When the request was due: an open-loop client's schedule, not when it found time to send."""
    times: Sequence[float]
    """One per emitted token id, never falling; tokens of one step share theirs."""

    @property
    def steps(self) -> list[tuple[float, int]]:
        """(time, number of tokens) of each step that yielded any."""
        return [(time, len(list(same))) for time, same in groupby(self.times)]

    @property
    def time_to_first_token(self) -> float | None:
        return self.times[0] - self.start if self.times else None

    @property
    def time_per_output_token(self) -> float | None:
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1) if len(self.times) > 1 else None

    @property
    def inter_token_latencies(self) -> list[float]:
        """One per token after the first step's."""
        return [(time - before) / count for (before, _), (time, count) in pairwise(self.steps) for _ in range(count)]

    @property
    def step_latencies(self) -> list[float]:
        return [time - before for (before, _), (time, _) in pairwise(self.steps)]


def mean_inter_token_latency(answers: Sequence[TokenTimes]) -> float | None:
    """Over all tokens of all answers, except those of first steps; None where there are none."""
    latencies = [value for answer in answers for value in answer.inter_token_latencies]
    return statistics.fmean(latencies) if latencies else None


def token_figures(answers: Sequence[TokenTimes], *, seconds: float) -> dict[str, float]:
    """The figures of one trial in which ``answers`` came within ``seconds``; what there is none of is left out."""
    latencies = [value for answer in answers for value in answer.inter_token_latencies]
    first = [answer.time_to_first_token for answer in answers if answer.time_to_first_token is not None]
    each = [answer.time_per_output_token for answer in answers if answer.time_per_output_token is not None]
    whole = [answer.times[-1] - answer.start for answer in answers if answer.times]
    steps = [value for answer in answers for value in answer.step_latencies]
    num_tokens = sum(len(answer.times) for answer in answers)
    num_steps = sum(len(answer.steps) for answer in answers)
    found: dict[str, float | None] = {
        "seconds": seconds,
        "num_requests": len(answers),
        "num_tokens": num_tokens,
        "tokens_per_second": num_tokens / seconds if seconds else None,
        "inter_token_latency": mean_inter_token_latency(answers),
        "time_per_output_token": statistics.fmean(each) if each else None,
        "request_latency": statistics.fmean(whole) if whole else None,
        "tokens_per_step": num_tokens / num_steps if num_steps else None,
        "step_latency_max": max(steps, default=None),
    }
    each_of = {
        "time_to_first_token": first,
        "inter_token_latency": latencies,
        "step_latency": steps,
        "request_latency": whole,
    }
    for name, values in each_of.items():
        found |= {f"{name}_{share}": value for share, value in percentiles(values, (50, 99)).items()}
    return {name: float(value) for name, value in found.items() if value is not None}


def first_token_by_turn(answers: Sequence[tuple[int, TokenTimes]]) -> dict[str, float]:
    """Median time to first token of each turn of some dialogues, in seconds; turns are numbered from 1."""
    found: dict[str, list[float]] = {}
    for turn, times in sorted(answers, key=lambda one: one[0]):
        if times.time_to_first_token is not None:
            found.setdefault(f"turn {turn + 1}", []).append(times.time_to_first_token)
    return {name: statistics.median(values) for name, values in found.items()}
