"""Knows how a peer is made ready: started, checked against our greedy answers, its best settings found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paceline.benchmark.peers.catalogue import Peer
from paceline.benchmark.peers.process import Answers, PeerError, PeerProcess
from paceline.benchmark.trial import TrialResult, Variant

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
    num_choices: int = 64
    """At how many places of our answers the peer is asked for the next token."""

    @property
    def max_tokens(self) -> int:
        return len(self.expected[0])

    def choices(self) -> list[tuple[list[int], int]]:
        """(tokens, our next one) at places spread over all answers."""
        many = len(self.expected) * self.max_tokens
        places = sorted({many * number // self.num_choices for number in range(self.num_choices)})
        each = [divmod(place, self.max_tokens) for place in places]
        return [([*self.prompts[who], *self.expected[who][:at]], self.expected[who][at]) for who, at in each]


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
    same_choices: float | None = None
    """Share of our greedy choices that are its own, given the same tokens before; one difference spoils no other."""
    reason: str | None = None
    """Why it does not count."""


@dataclass(frozen=True, slots=True)
class ReadyPeer:
    """A peer that is ready, in the fastest of its settings."""

    name: str
    process: PeerProcess
    best: Tried
    versions: dict[str, str]
    tried: list[Tried] = field(default_factory=list)

    def side(self, prompts: Sequence[TokenIds], max_tokens: int) -> Variant:
        """The peer as one side of an experiment by ``tokens_per_second``."""

        def run(_pair: int) -> TrialResult:
            answers = self.process.generate(prompts, max_tokens)
            return TrialResult(speeds(answers), {"steps": answers.steps})

        return Variant(self.name, run)


def speeds(answers: Answers) -> dict[str, float]:
    """Seconds, tokens, tokens a second over all, and where there are several steps also between first and last.

    The latter, ``decode_tokens_per_second``, leaves out what came before every answer had its first token.
    """
    num_tokens = sum(map(len, answers.token_ids))
    figures = {
        "seconds": answers.seconds,
        "num_tokens": num_tokens,
        "tokens_per_second": num_tokens / answers.seconds,
    }
    steps = [(at, count) for at, count in answers.steps if count]
    if len(steps) > 1:
        (first_at, first), (last_at, last) = steps[0], steps[-1]
        figures["decode_tokens_per_second"] = num_tokens * (last - first) / last / (last_at - first_at)
    return figures


def prepare(name: str, peer: Peer, task: Task, *, start: Callable[[], Path]) -> ReadyPeer | Missing:
    """Starts the peer and chooses its settings.

    Args:
        start: gives the Python of its environment, making it if need be.
    """
    if peer.needs_draft and task.draft is None:
        return Missing(name, "it needs a draft model, and none was named")
    try:
        process = PeerProcess(start(), peer.adapter)
    except PeerError as error:
        return Missing(name, str(error))
    found = choose(name, process, task, peer.settings(task.draft), peer.least_agreement)
    if isinstance(found, Missing):
        process.__exit__(None, None, None)
    return found


def choose(
    name: str, process: PeerProcess, task: Task, settings: Sequence[dict[str, Any]], least_agreement: float
) -> ReadyPeer | Missing:
    """Tries every setting, and leaves the process loaded with the fastest that agrees with ours.

    A setting that shares fewer than ``least_agreement`` of our choices counts as another model and is not timed; the
    shares found are reported beside the speed.
    """
    tried = [_try(process, task, one, least_agreement, alone=len(settings) == 1) for one in settings]
    timed = [one for one in tried if one.reason is None and one.seconds is not None]
    try:
        if not timed:
            raise PeerError("; ".join(f"{one.settings}: {one.reason}" for one in tried))
        best = min(timed, key=lambda one: one.seconds or 0.0)
        versions = process.load(task.model, threads=task.threads, settings=best.settings)
    except PeerError as error:
        return Missing(name, str(error))
    return ReadyPeer(name, process, best, versions, tried)


def _try(process: PeerProcess, task: Task, settings: dict[str, Any], least_agreement: float, *, alone: bool) -> Tried:
    """``alone``: there is nothing to compare its time with, so the first answers' time will do."""
    try:
        process.load(task.model, threads=task.threads, settings=settings)
        asked = task.choices()
        chosen = process.generate([tokens for tokens, _ in asked], 1)
        same = sum(one == [token] for one, (_, token) in zip(chosen.token_ids, asked, strict=True)) / len(asked)
        if same < least_agreement:
            return Tried(settings, same_choices=same, reason=f"only {same:.0%} of its greedy choices are ours")
        first = process.generate(task.prompts, task.max_tokens)  # warms up, and is compared
        alike = agreement(first.token_ids, task.expected)
        timed = first if alone else process.generate(task.prompts, task.max_tokens)
        return Tried(settings, timed.seconds, alike, same)
    except PeerError as error:
        return Tried(settings, reason=str(error))


def agreement(found: Sequence[TokenIds], expected: Sequence[TokenIds]) -> float:
    """Share of the expected tokens that come before each answer's first difference."""
    common = 0
    for mine, theirs in zip(expected, found, strict=True):
        pairs = enumerate(zip(mine, theirs, strict=True))
        common += next((place for place, (a, b) in pairs if a != b), len(mine))
    return common / sum(map(len, expected))
