"""A set of token ids: what went in comes out, in any form, and costs a bit per token of the vocabulary."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paceline import InvalidRequestError, SamplingParams
from paceline.core.call import CallOptions
from paceline.core.params import check_vocabulary
from paceline.core.token_set import MAX_SET_TOKEN, TokenSet
from paceline.engine.process.messages import Generate, decode_order, encode


@given(st.lists(st.integers(0, 300), max_size=40))
def test_what_went_in_comes_out(ids) -> None:
    found = TokenSet.of(ids)
    assert list(found) == sorted(set(ids))
    assert found == tuple(sorted(set(ids)))
    assert len(found) == len(set(ids))
    assert found.highest == max(ids, default=-1)
    assert [token in found for token in range(-2, 320)] == [token in set(ids) for token in range(-2, 320)]
    assert TokenSet(found.bits) == found
    assert TokenSet(found.bits + b"\0\0") == found
    assert hash(found) == hash(TokenSet.of(reversed(ids))) == hash(tuple(sorted(set(ids))))
    assert found[:2] == tuple(sorted(set(ids)))[:2]


def test_many_tokens_take_a_bit_each() -> None:
    ids = range(0, 150_000, 3)
    params = SamplingParams(allowed_token_ids=ids)
    assert list(params.allowed_token_ids) == list(ids)
    assert len(params.allowed_token_ids.bits) == 18_750
    assert len(repr(params)) < 800
    check_vocabulary(params, 149_998)
    with pytest.raises(InvalidRequestError, match="allowed_token_ids"):
        check_vocabulary(params, 149_997)


@pytest.mark.parametrize(
    "ids",
    [
        [7, 5, 5],
        (5, 7),
        {5, 7},
        (token for token in (5, 7)),
        np.array([5, 7]),
        torch.tensor([7, 5]),
        b"\xa0",
        range(5, 8, 2),
    ],
    ids=lambda ids: type(ids).__name__,
)
def test_every_way_to_write_a_set(ids) -> None:
    assert SamplingParams(allowed_token_ids=ids).allowed_token_ids == (5, 7)


@pytest.mark.parametrize(
    "ids",
    [
        *([], b"", b"\0", [-1], [MAX_SET_TOKEN + 1]),
        *([2**31 - 1], [True], [1.0], ["5"], "57", {5: 7}, 5, b"\0" * 2**21 + b"\1"),
        *(bytearray(b"\1"), np.array([1.5]), torch.tensor([[5, 7]])),
    ],
    ids=lambda ids: repr(ids)[:20],
)
def test_what_is_no_set(ids) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(allowed_token_ids=ids)
    assert caught.value.param == "allowed_token_ids"
    assert len(str(caught.value)) < 400


def test_a_set_crosses_processes_as_bits() -> None:
    params = SamplingParams(allowed_token_ids=range(100_000), stop_token_ids=np.array([3, 4]))
    frame = encode(Generate(1, "a", [5], params, CallOptions()))
    assert len(frame) < 14_000
    order = decode_order(frame[4:])
    assert order.params == params


def test_parameters_can_be_hashed_compared_and_copied() -> None:
    full = {"logit_bias": {4: 1.0, 3: -1.0}, "allowed_token_ids": [3, 4], "stop": ["x"], "bad_words": ["y"], "seed": 3}
    one, same = (
        SamplingParams(**full),
        SamplingParams(**full | {"logit_bias": {3: -1, 4: 1}, "allowed_token_ids": (4, 3)}),
    )
    others = [SamplingParams(**full | {"logit_bias": {3: 1.0}}), SamplingParams(**full | {"allowed_token_ids": [3]})]
    assert one == same
    assert json.loads(json.dumps(one.as_dict()))["allowed_token_ids"] == [3, 4]
    assert hash(one) == hash(same)
    assert {one: "a", same: "b", SamplingParams(): "c", others[0]: "d", others[1]: "e"}[one] == "b"
    assert len({one, same, SamplingParams(), SamplingParams(), *others}) == 4
    for twin in (copy.copy(one), copy.deepcopy(one)):
        assert twin == one
        assert hash(twin) == hash(one)
