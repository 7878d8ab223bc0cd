"""Sampling parameters: whatever is passed becomes plain Python values, or an error that names the field."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from paceline import InvalidRequestError, SamplingParams
from paceline.core.errors import shown

NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)
COUNTS = ("n", "best_of", "top_k", "seed", "max_tokens", "min_tokens", "logprobs", "prompt_logprobs")
HUGE = {"400 digits": 10**400, "beyond what Python writes out": 10**5000, "and negative": -(10**5000)}


@pytest.mark.parametrize("value", HUGE.values(), ids=HUGE)
@pytest.mark.parametrize("name", [*NUMBERS, *COUNTS])
def test_huge_integers_are_out_of_range(name, value) -> None:
    with pytest.raises(InvalidRequestError, match=f"{name} must be .*-bit integer") as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name


@pytest.mark.parametrize("name", ["stop_token_ids", "allowed_token_ids"])
def test_huge_token_ids_are_out_of_range(name) -> None:
    with pytest.raises(InvalidRequestError, match=name):
        SamplingParams(**{name: [10**5000]})
    with pytest.raises(InvalidRequestError, match="logit_bias"):
        SamplingParams(logit_bias={10**5000: 1.0})
    with pytest.raises(InvalidRequestError, match="logit_bias"):
        SamplingParams(logit_bias={1: 10**5000})


@pytest.mark.parametrize("value", ["x" * 10**6, ["x"] * 10**6, [["x" * 1000] * 1000] * 1000, {"a": "x" * 10**6}])
def test_messages_are_short(value) -> None:
    for name in ("temperature", "seed", "ignore_eos", "bad_words", "stop"):
        if not (name in ("bad_words", "stop") and isinstance(value, str)):
            with pytest.raises(InvalidRequestError) as caught:
                SamplingParams(**{name: value})
            assert len(str(caught.value)) < 400


def test_what_cannot_be_shown_is_shown_somehow() -> None:
    class Mute:
        def __repr__(self) -> str:
            raise RuntimeError

    assert "Mute" in shown(Mute())
    assert "-bit integer" in shown([{"a": (10**5000,)}])
    assert shown("text") == "'text'"
    assert shown(2**70) == str(2**70)


def test_numpy_numbers_become_plain_ones() -> None:
    params = SamplingParams(
        n=np.int64(2),
        seed=np.uint8(7),
        temperature=np.float32(0.5),
        top_p=Fraction(1, 2),
        min_p=np.int32(1),
        logit_bias={np.int64(3): np.float64(2.0)},
        stop_token_ids=[np.int32(4)],
        allowed_token_ids=(np.uint16(5),),
    )
    assert (params.n, params.seed, params.temperature, params.top_p, params.min_p) == (2, 7, 0.5, 0.5, 1.0)
    assert (params.logit_bias, params.stop_token_ids, params.allowed_token_ids) == ({3: 2.0}, (4,), (5,))
    plain = [params.n, params.seed, params.temperature, params.top_p, params.min_p]
    plain += [*params.stop_token_ids, *params.allowed_token_ids, *params.logit_bias]
    assert {type(value) for value in plain} == {int, float}


@pytest.mark.parametrize(
    "value", [True, np.True_, "1", None, 1j, np.float64("nan"), float("inf"), Fraction(1, 10**400)]
)
def test_what_is_no_number_in_range(value) -> None:
    with pytest.raises(InvalidRequestError, match="top_p"):
        SamplingParams(top_p=value)


@pytest.mark.parametrize("value", [True, np.True_, 1.0, np.float64(1), "1", b"1"])
def test_what_is_no_integer(value) -> None:
    with pytest.raises(InvalidRequestError, match="max_tokens"):
        SamplingParams(max_tokens=value)


def test_later_changes_of_a_map_change_nothing() -> None:
    bias = {3: 1.0}
    params = SamplingParams(logit_bias=bias)
    bias[3] = 1e9
    assert params.logit_bias == {3: 1.0}


def test_token_ids_of_bad_words_cannot_be_passed_unchecked() -> None:
    with pytest.raises(TypeError, match="bad_words_token_ids"):
        SamplingParams(bad_words_token_ids=((-1,), "x"))
