"""What a drafter that learns from one call drafts for the next, under the same salt and under another."""

from __future__ import annotations

from typing import Any

from paceline.core.call import CallOptions
from paceline.core.params import SamplingParams
from paceline.engine.input_processor import InputProcessor
from tests.support.engines import Models, drive, prompts

PROMPT = prompts(3, 61, [9])[0]
PARAMS = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)


def drafts_of(models: Models, speculation: dict[str, Any], salts: list[str]) -> list[list[list[int]]]:
    """What was drafted for calls of these salts, one after another, all with the same prompt."""
    engine = models.engine(speculation)
    seen: list[list[list[int]]] = []
    true = engine.proposer._proposed

    def noted(plan: Any) -> Any:
        drafts = true(plan)
        seen[-1].append(drafts.tokens[0, : drafts.counts[0]].tolist())
        return drafts

    engine.proposer._proposed = noted
    for salt in salts:
        seen.append([])
        group = InputProcessor(engine, None).group(list(PROMPT), PARAMS, options=CallOptions(cache_salt=salt))
        engine.add(group)
        drive(engine, [group])
    return seen


def salts_share_nothing(models: Models, speculation: dict[str, Any]) -> None:
    """A call is drafted for as if it were the first one, unless one of its salt came before."""
    first, second, again = drafts_of(models, speculation, ["a", "b", "a"])
    assert first == second
    assert first != again
