"""Runs dialogues through an engine in this process, step by step, and notes when every token came."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from paceline.benchmark.tokens import TokenTimes
from paceline.benchmark.trial import Clock
from paceline.benchmark.workloads import Dialogue
from paceline.core.call import CallOptions
from paceline.core.params import SamplingParams
from paceline.core.request import Group
from paceline.engine.llm import LLM

PREFILL, DECODE = "prefill", "decode"
Around = Callable[[str], AbstractContextManager[object]]
"""Entered around every step, with the step's phase."""


@dataclass(slots=True)
class Phase:
    """What the steps of one phase took; a step in which any request still waits for its first token is prefill."""

    seconds: float = 0.0
    num_steps: int = 0
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TimedAnswer:
    """One turn's answer."""

    category: str
    turn: int
    num_prompt_tokens: int
    token_ids: list[int]
    times: TokenTimes


@dataclass(slots=True)
class Drive:
    """What running some dialogues gave."""

    seconds: float = 0.0
    answers: list[TimedAnswer] = field(default_factory=list)
    phases: dict[str, Phase] = field(default_factory=lambda: {PREFILL: Phase(), DECODE: Phase()})


@dataclass(slots=True)
class _Running:
    dialogue: Dialogue
    group: Group
    answers: list[list[int]] = field(default_factory=list)


def _unobserved(_phase: str) -> AbstractContextManager[object]:
    return nullcontext()


def drive(
    llm: LLM,
    dialogues: Sequence[Dialogue],
    params: Sequence[SamplingParams],
    options: CallOptions,
    *,
    around: Around = _unobserved,
    clock: Clock = time.monotonic,
) -> Drive:
    """Asks all dialogues at once, each next turn as soon as the one before is answered; returns when all are.

    Args:
        params: one per dialogue.
        options: of every call.
    """
    found = Drive()
    started = clock()
    running = [
        _Running(dialogue, _ask(llm, dialogue, [], each, options))
        for dialogue, each in zip(dialogues, params, strict=True)
    ]
    try:
        while running:
            _step(llm, found, around, clock)
            running = [one for one in running if not one.group.finished or _next_turn(llm, one, found, options)]
    except BaseException:
        for one in running:
            llm.engine.abort(one.group)
        raise
    found.seconds = clock() - started
    return found


def _ask(llm: LLM, dialogue: Dialogue, answers: list[list[int]], params: SamplingParams, options: CallOptions) -> Group:
    group = llm.input_processor.group(dialogue.prompt(answers), params, options=options)
    llm.engine.add(group)
    return group


def _step(llm: LLM, found: Drive, around: Around, clock: Clock) -> None:
    scheduler = llm.engine.scheduler
    first = bool(scheduler.waiting) or any(not request.output_token_ids for request in scheduler.running)
    name = PREFILL if first else DECODE
    with around(name):
        before = clock()
        progress = llm.engine.step()
        seconds = clock() - before
    phase = found.phases[name]
    phase.seconds += seconds
    phase.num_steps += 1
    phase.num_tokens += sum(item.num_new for item in progress)


def _next_turn(llm: LLM, one: _Running, found: Drive, options: CallOptions) -> bool:
    """Keeps the finished turn's answer; true if another turn was asked."""
    (request,) = one.group.members
    times = TokenTimes(one.group.arrival, list(request.token_times))
    tokens = list(request.output_token_ids)
    found.answers.append(
        TimedAnswer(one.dialogue.category, len(one.answers), len(request.prompt_token_ids), tokens, times)
    )
    one.answers.append(tokens)
    if len(one.answers) == one.dialogue.num_turns:
        return False
    one.group = _ask(llm, one.dialogue, one.answers, request.params, options)
    return True
