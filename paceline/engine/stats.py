"""Counts what steps did: tokens, drafts, acceptance by position, finishes."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from paceline.core.outputs import RequestMetrics
from paceline.core.request import Group, Request
from paceline.engine.pacer import estimated_speedup

STEP_TOKENS = (1, *(2**power for power in range(3, 15)))
"""Where the classes of steps end by how many tokens they had, as vLLM has them."""


@dataclass(slots=True)
class Counters:
    """Totals since the engine was built."""

    max_depth: int
    num_steps: int = 0
    num_generated: int = 0
    num_drafts: int = 0
    """Request-steps that had a draft."""
    num_drafted: int = 0
    num_accepted: int = 0
    accepted_at_once: list[int] = field(init=False)
    """[max_depth + 1] how often so many tokens of a draft were accepted."""
    finished: Counter[str] = field(default_factory=Counter)
    step_tokens: list[int] = field(default_factory=lambda: [0] * (len(STEP_TOKENS) + 1))
    """Steps by their tokens, of prompts and generated: up to each of ``STEP_TOKENS``, and more."""
    num_step_tokens: int = 0

    def __post_init__(self) -> None:
        self.accepted_at_once = [0] * (self.max_depth + 1)

    @property
    def accepted_per_position(self) -> npt.NDArray[np.int64]:
        """[max_depth] how often the draft token at this depth was accepted."""
        return np.cumsum(self.accepted_at_once[:0:-1], dtype=np.int64)[::-1]

    def record(self, request: Request, num_nodes: int, num_accepted: int, num_kept: int, now: float) -> None:
        """One request's part in one step; accepted nodes past the request's end do not count.

        Without a draft every token took a pass, even where one step was several of them.
        """
        accepted = min(num_accepted, num_kept) if num_nodes else 0
        if num_kept == 1:
            request.token_times.append(now)
            request.token_drafted.append(accepted == 1)
        else:
            request.token_times += [now] * num_kept
            request.token_drafted += [True] * accepted + [False] * (num_kept - accepted)
        if num_kept:
            request.num_decode_steps += 1 if num_nodes else num_kept
            self.num_generated += num_kept
        if num_nodes:
            request.num_drafted += num_nodes
            request.num_accepted += accepted
            self.num_drafts += 1
            self.num_drafted += num_nodes
            self.num_accepted += accepted
            self.accepted_at_once[accepted] += 1

    def record_step(self, num_tokens: int) -> None:
        """A step that computed so many prompt tokens and gave so many new ones, together."""
        self.step_tokens[bisect_left(STEP_TOKENS, num_tokens)] += 1
        self.num_step_tokens += num_tokens

    def record_finished(self, request: Request) -> None:
        self.finished[str(request.finish_reason)] += 1


def metrics_of(group: Group) -> RequestMetrics:
    """A call's figures over all its members."""
    members = group.members
    first = min((member.token_times[0] for member in members if member.token_times), default=None)
    gaps = [(m.token_times[-1] - m.token_times[0], len(m.token_times) - 1) for m in members if len(m.token_times) > 1]
    last = max((member.token_times[-1] for member in members if member.token_times), default=None)
    steps = sum(member.num_decode_steps for member in members)
    return RequestMetrics(
        num_drafted=sum(member.num_drafted for member in members),
        num_accepted=sum(member.num_accepted for member in members),
        mean_acceptance_length=sum(len(member.output_token_ids) for member in members) / steps if steps else 1.0,
        time_to_first_token=_between(group.arrival, first),
        time_per_output_token=sum(g for g, _ in gaps) / sum(n for _, n in gaps) if gaps else None,
        num_preemptions=sum(member.num_preemptions for member in members),
        num_cached_tokens=members[0].num_cached_tokens,
        num_truncated_tokens=group.num_truncated_tokens,
        num_slides=sum(member.num_slides for member in members),
        num_dropped_tokens=sum(member.num_dropped for member in members),
        num_decode_steps=steps,
        queue_time=_between(group.arrival, group.seated_at),
        prefill_time=_between(group.seated_at, first),
        decode_time=_between(first, last),
        e2e_time=_between(group.arrival, last),
        estimated_speedup=estimated_speedup(members),
    )


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start
