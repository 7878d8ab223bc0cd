"""Sampled tokens follow the distribution that the oracle computes; nearby wrong distributions are told apart."""

import numpy as np
import pytest
import torch

from tests.support.oracle import probabilities, processed
from tests.support.seating import Room, make_request, many_rows, random_logits, rows_of

pytestmark = pytest.mark.usefixtures("each_sampler")

VOCAB = 10
COUNT = 20_000
THRESHOLD = 45.0  # 9 degrees of freedom exceed it once in a million
OUTPUT = [4, 5, 5, 2]

CONTROLS = [
    {},
    {"temperature": 0.6},
    {"temperature": 1.7},
    {"top_k": 4},
    {"top_p": 0.8},
    {"min_p": 0.15},
    {"top_k": 6, "top_p": 0.7, "temperature": 1.3},
    {"logit_bias": {1: 1.5, 2: -0.5}},
    {"presence_penalty": 0.9, "frequency_penalty": 0.6},
    {"repetition_penalty": 1.6},
    {"allowed_token_ids": [0, 2, 3, 8], "min_p": 0.02},
    {"words": ((5, 2, 7), (1,)), "min_tokens": 10**6, "max_tokens": None},
]


def chi_square(tokens, expected):
    counts = np.bincount(tokens, minlength=len(expected))
    possible = np.asarray(expected) > 0
    assert not counts[~possible].any()
    wanted = np.asarray(expected)[possible] * len(tokens)
    return float(((counts[possible] - wanted) ** 2 / wanted).sum())


def sampled(controls, dtype=torch.float32, **identity):
    room = Room(vocab=VOCAB)
    request = room.join(make_request(output=OUTPUT, **identity, **controls))
    logits = random_logits(1, vocab=VOCAB, seed=1, scale=1.0)
    tokens = room.pipeline.sample(logits.to(dtype).expand(COUNT, -1), many_rows(request, COUNT))
    scores, _ = processed(
        logits[0].tolist(),
        request.params,
        request.prompt_token_ids,
        OUTPUT,
        eos=(0,),
        words=controls.get("words", ()),
    )
    return tokens, probabilities(scores)


@pytest.mark.parametrize("controls", CONTROLS, ids=lambda controls: "-".join(controls) or "none")
def test_samples_follow_the_distribution(controls):
    assert chi_square(*sampled(controls)) < THRESHOLD


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_samples_follow_the_distribution_in_other_dtypes(dtype):
    tokens, expected = sampled({}, dtype=dtype)
    assert chi_square(tokens, expected) < THRESHOLD


@pytest.mark.parametrize("wrong", [{"temperature": 1.1}, {"top_k": 9}, {"logit_bias": {3: 0.15}}, {"min_p": 0.12}])
def test_the_statistic_sees_a_slightly_wrong_distribution(wrong):
    tokens, _ = sampled(wrong)
    _, expected = sampled({})
    assert chi_square(tokens, expected) > THRESHOLD


def pair_statistic(first, second, expected):
    joint = np.outer(expected, expected).ravel()
    return chi_square(first * len(expected) + second, joint)


PAIR_THRESHOLD = 185.0  # 99 degrees of freedom exceed it once in two million


@pytest.mark.parametrize(
    "other", [{"sample_index": 1}, {"seed": 12}, {"seed": 11 + 2**40}], ids=["sample_index", "seed", "high_seed"]
)
def test_samples_and_seeds_are_independent(other):
    first, expected = sampled({})
    second, _ = sampled({}, **other)
    assert pair_statistic(first, second, expected) < PAIR_THRESHOLD
    assert pair_statistic(first, first, expected) > 10 * PAIR_THRESHOLD


@pytest.mark.parametrize("lag", [1, 2, 4])
def test_output_indexes_are_independent(lag):
    tokens, expected = sampled({})
    pairs = tokens[: COUNT - lag : lag + 1], tokens[lag :: lag + 1]
    shortest = min(map(len, pairs))
    assert pair_statistic(pairs[0][:shortest], pairs[1][:shortest], expected) < PAIR_THRESHOLD


def test_samples_survive_a_new_batch_and_another_seat():
    room = Room(vocab=VOCAB)
    first = room.join(make_request(seed=5, sample_index=3))
    logits = random_logits(50, vocab=VOCAB, seed=4)
    together = room.pipeline.sample(logits, many_rows(first, 50))
    room.leave(first)
    room.join(make_request(seed=1))
    again = room.join(make_request(seed=5, sample_index=3))
    room.accept(again, [7] * 20)
    one = rows_of((again, []))
    assert room.pipeline.sample(logits[20:21], one).tolist() == [together[20]]
