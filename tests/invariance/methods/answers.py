"""Answers with all that a client sees of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from paceline.engine.engine import Engine
from paceline.engine.input_processor import InputProcessor
from tests.support.engines import Hook, Job, drive
from tests.support.letters import letters
from tests.support.methods import METHODS

DEPTH = 4


@dataclass
class Answer:
    """One answer; log-probabilities are approximate, since rows are computed in other company."""

    tokens: list[int]
    text: str
    finish: tuple[Any, Any]
    logprobs: list[tuple[int, int, Any]]


def speculation(method: str, **more: Any) -> dict[str, Any]:
    return {**METHODS[method], "num_speculative_tokens": DEPTH, **more}


def answers(engine: Engine, jobs: Sequence[Job], *, hook: Hook | None = None) -> list[list[Answer]]:
    """Of jobs that run together."""
    processor = InputProcessor(engine, letters())
    groups = [processor.group(list(job.prompt), job.params) for job in jobs]
    for group in groups:
        engine.add(group)
    drive(engine, groups, hook)
    return [[_answer(member) for member in group.members] for group in groups]


def _answer(member: Any) -> Answer:
    logprobs = [(entry.token_id, entry.rank, pytest.approx(entry.logprob, abs=1e-9)) for entry in member.logprobs]
    text = "" if member.detokenizer is None else member.detokenizer.text
    return Answer(member.output_token_ids, text, (member.finish_reason, member.stop_reason), logprobs)
