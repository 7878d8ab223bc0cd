"""A draft ends where its request would: nothing is drafted that could never stand."""

from __future__ import annotations

import pytest

from paceline import SamplingParams
from paceline.core.request import Request

PROMPT = [5, 9, 11, 3]


def drafted(llm, params: SamplingParams) -> tuple[int, int, list[int]]:
    """Drafted and accepted tokens of an answer, and the answer."""
    (output,) = llm.generate([PROMPT], params)
    return output.metrics.num_drafted, output.metrics.num_accepted, output.outputs[0].token_ids


def ending(llm, place: int) -> SamplingParams:
    """Stops at the token that comes at ``place`` of the greedy answer, and nowhere before."""
    (output,) = llm.generate([PROMPT], SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True))
    tokens = output.outputs[0].token_ids
    while tokens.index(tokens[place]) != place:
        place += 1
    return SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, stop_token_ids=[tokens[place]])


@pytest.mark.parametrize("place", [2, 3, 5, 8])
def test_a_perfect_draft_is_accepted_whole(perfect, plain, place: int) -> None:
    params = ending(plain, place)
    num_drafted, num_accepted, tokens = drafted(perfect, params)
    assert tokens == drafted(plain, params)[2]
    assert num_drafted == num_accepted > 0


def test_a_draft_that_goes_on_would_be_noticed(perfect, plain, monkeypatch) -> None:
    monkeypatch.setattr(Request, "stop_ids", ())
    num_drafted, num_accepted, _ = drafted(perfect, ending(plain, 3))
    assert num_drafted > num_accepted


def test_a_token_that_may_not_end_yet_ends_no_draft(perfect, plain) -> None:
    stop = ending(plain, 2).stop_token_ids
    params = SamplingParams(temperature=0.0, max_tokens=12, min_tokens=12, stop_token_ids=stop, ignore_eos=True)
    num_drafted, num_accepted, tokens = drafted(perfect, params)
    assert tokens == drafted(plain, params)[2]
    assert len(tokens) == 12
    assert num_drafted == num_accepted
