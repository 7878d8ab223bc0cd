"""Knows how a peer is made ready: started, checked against our greedy answers, its best settings found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paceline.benchmark.peers.catalogue import Peer
from paceline.benchmark.peers.process import PeerError, PeerProcess
from paceline.benchmark.trial import Sample, Side

TokenIds = Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What ours and the peer are both asked, and what ours answered."""

    model: str
    draft: str | None
    prompts: Sequence[TokenIds]
    expected: Sequence[TokenIds]
    """Our greedy answers, all of one length."""
    threads: int

    @property
    def max_tokens(self) -> int:
        return len(self.expected[0])


@dataclass(frozen=True, slots=True)
class Missing:
    """A peer that takes no part, and why; reported, never left out."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Tried:
    """One of the sweep's settings."""

    settings: dict[str, Any]
    seconds: float | None = None
    agreement: float | None = None
    """Share of our greedy tokens up to each answer's first difference; 1 where all answers are the same."""
    reason: str | None = None
    """Why it does not count."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A peer that is ready, in the fastest of its settings."""

    name: str
    process: PeerProcess
    best: Tried
    versions: dict[str, str]
    tried: list[Tried] = field(default_factory=list)

    def side(self, prompts: Sequence[TokenIds], max_tokens: int) -> Side:
        """The peer as one side of an experiment by ``tokens_per_second``."""

        def run(_pair: int) -> Sample:
            answers = self.process.generate(prompts, max_tokens)
            num_tokens = sum(map(len, answers.token_ids))
            figures = {"seconds": answers.seconds, "num_tokens": num_tokens}
            return Sample(figures | {"tokens_per_second": num_tokens / answers.seconds}, {"steps": answers.steps})

        return Side(self.name, run)


def prepare(
    name: str, peer: Peer, task: Task, *, start: Callable[[], Path], least_agreement: float = 0.9
) -> Chosen | Missing:
    """Starts the peer, tries every setting, and leaves it loaded with the fastest that agrees with ours.

    Args:
        start: gives the Python of its environment, making it if need be.
        least_agreement: below this a setting counts as another model and is not timed. Half types may part from
            float32 at near ties, so it is not 1; the share found is reported beside the speed.
    """
    if peer.needs_draft and task.draft is None:
        return Missing(name, "it needs a draft model, and none was named")
    try:
        process = PeerProcess(start(), peer.adapter)
    except PeerError as error:
        return Missing(name, str(error))
    tried = [_try(process, task, settings, least_agreement) for settings in peer.settings(task.draft)]
    timed = [one for one in tried if one.reason is None and one.seconds is not None]
    try:
        if not timed:
            raise PeerError("; ".join(f"{one.settings}: {one.reason}" for one in tried))
        best = min(timed, key=lambda one: one.seconds or 0.0)
        versions = process.load(task.model, threads=task.threads, settings=best.settings)
    except PeerError as error:
        process.__exit__(None, None, None)
        return Missing(name, str(error))
    return Chosen(name, process, best, versions, tried)


def _try(process: PeerProcess, task: Task, settings: dict[str, Any], least_agreement: float) -> Tried:
    try:
        process.load(task.model, threads=task.threads, settings=settings)
        answers = process.generate(task.prompts, task.max_tokens)  # warms up, and is compared
        same = agreement(answers.token_ids, task.expected)
        if same < least_agreement:
            return Tried(settings, agreement=same, reason=f"only {same:.0%} of its greedy tokens are ours")
        return Tried(settings, process.generate(task.prompts, task.max_tokens).seconds, same)
    except PeerError as error:
        return Tried(settings, reason=str(error))


def agreement(found: Sequence[TokenIds], expected: Sequence[TokenIds]) -> float:
    """Share of the expected tokens that come before each answer's first difference."""
    common = 0
    for mine, theirs in zip(expected, found, strict=True):
        pairs = enumerate(zip(mine, theirs, strict=True))
        common += next((place for place, (a, b) in pairs if a != b), len(mine))
    return common / sum(map(len, expected))
