"""Scores are what each control's definition says, for known tokens and draft path alike, alone or in a batch."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from paceline.core.params import SamplingParams
from tests.support.oracle import processed
from tests.support.seating import VOCAB, Room, chain_rows, make_request, random_logits, rows_of

pytestmark = pytest.mark.usefixtures("each_sampler")

TOKENS = st.integers(0, VOCAB - 1)
WORDS = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple), max_size=6).map(tuple)
HISTORY = st.lists(st.integers(0, 4), max_size=8)
EXAMPLES = settings(max_examples=80, deadline=None, derandomize=True)


@st.composite
def sampling_params(draw):
    def often(strategy, otherwise):
        return draw(strategy) if draw(st.booleans()) else otherwise

    return SamplingParams(
        temperature=draw(st.sampled_from([0.0, 1.0, 0.3, 0.9, 2.5])),
        top_k=often(st.integers(-1, VOCAB + 2), 0),
        top_p=often(st.floats(0.01, 1.0), 1.0),
        min_p=often(st.floats(0.0, 1.0), 0.0),
        presence_penalty=often(st.floats(-2, 2), 0.0),
        frequency_penalty=often(st.floats(-2, 2), 0.0),
        repetition_penalty=often(st.floats(0.5, 2), 1.0),
        logit_bias=often(st.dictionaries(TOKENS, st.floats(-5, 5, width=32, allow_subnormal=False), max_size=4), None),
        allowed_token_ids=often(st.lists(TOKENS, min_size=1, max_size=12), None),
        min_tokens=often(st.integers(0, 12), 0),
        stop_token_ids=often(st.lists(TOKENS, max_size=3), ()),
        max_tokens=None,
    )


LOGITS = st.one_of(
    st.integers(0, 10**6).map(lambda seed: random_logits(1, seed=seed)[0].tolist()),
    st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=VOCAB, max_size=VOCAB),
)


def assert_same_scores(found, expected):
    expected = torch.tensor(expected, dtype=found.dtype)
    assert torch.equal(found == -torch.inf, expected == -torch.inf)
    kept = expected > -torch.inf
    if kept.any():
        torch.testing.assert_close(found[kept] - found.max(), expected[kept] - expected.max(), rtol=0, atol=1e-9)


@EXAMPLES
@given(params=sampling_params(), logits=LOGITS, prompt=HISTORY, output=HISTORY, path=HISTORY, words=WORDS)
def test_scores_match_the_oracle(*, params, logits, prompt, output, path, words):
    expected, margin = processed(logits, params, prompt, output + path, eos=(0,), words=words)
    assume(margin > 1e-9)
    room = Room()
    request = room.join(make_request(params, prompt=prompt, output=output, words=words))
    given_logits = torch.tensor([logits], dtype=torch.float64)
    found = room.pipeline.scores(given_logits, rows_of((request, path)))
    assert_same_scores(found[0], expected)
    assert given_logits[0].tolist() == logits


def check_path_is_exact(params, prompt, output, path, *, dtype=torch.float64, words=()):
    """A path is worth the same as known tokens, whether these were there at the start or came step by step."""
    room, logits = Room(), random_logits(1, seed=len(path), dtype=dtype)
    drafted, known, grown = (
        make_request(params, prompt=prompt, output=seen, words=words) for seen in (output, output + path, output)
    )
    room.join(drafted, known, grown)
    for token in path:
        room.accept(grown, [token])
    rows = [rows_of((drafted, path)), rows_of((known, [])), rows_of((grown, []))]
    scores = [room.pipeline.scores(logits, row) for row in rows]
    tokens = [room.pipeline.sample(logits, row).tolist() for row in rows]
    assert torch.equal(scores[0], scores[1])
    assert torch.equal(scores[0], scores[2])
    assert tokens[0] == tokens[1] == tokens[2]
    assert torch.equal(room.pipeline.scores(logits, rows[0]), scores[0])  # asking changed nothing


@EXAMPLES
@given(params=sampling_params(), prompt=HISTORY, output=HISTORY, path=HISTORY, words=WORDS)
def test_draft_path_is_exact(params, prompt, output, path, words):
    check_path_is_exact(params, prompt, output, path, words=words)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_draft_path_is_exact_in_every_dtype(dtype):
    params = SamplingParams(repetition_penalty=1.3, frequency_penalty=0.3, presence_penalty=0.2, top_p=0.9, top_k=9)
    check_path_is_exact(params, [1, 2, 3], [4, 5, 5], [5, 6, 6, 2], dtype=dtype)


BATCH: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {},
    {"temperature": 0.7, "top_k": 5},
    {"top_p": 0.8, "presence_penalty": 0.5},
    {"min_p": 0.1, "repetition_penalty": 1.2},
    {"temperature": 0.0, "frequency_penalty": 0.4},
    {"logit_bias": {1: 2.0}, "allowed_token_ids": [0, 1, 2, 3, 9]},
    {"words": ((5,), (4, 7)), "min_tokens": 9},
]


@pytest.mark.parametrize("vocab", [VOCAB, 1003])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_row_alone_is_the_row_in_a_batch(dtype, vocab):
    room = Room(vocab=vocab)
    requests = [make_request(output=[4, 5, 5], seed=seed, **controls) for seed, controls in enumerate(BATCH)]
    room.join(*requests)
    entries = [(request, path) for request in requests for path in ([], [4], [4, 7, 5])]
    logits = random_logits(len(entries), vocab=vocab, dtype=dtype)
    scores = room.pipeline.scores(logits, rows_of(*entries))
    tokens = room.pipeline.sample(logits, rows_of(*entries))
    for index, entry in enumerate(entries):
        alone, row = rows_of(entry), logits[index : index + 1]
        assert torch.equal(room.pipeline.scores(row, alone)[0], scores[index])
        assert room.pipeline.sample(row, alone)[0] == tokens[index]
    order = np.random.default_rng(3).permutation(len(entries))
    shuffled = room.pipeline.sample(logits[order], rows_of(*(entries[index] for index in order)))
    assert shuffled.tolist() == tokens[order].tolist()


@pytest.mark.parametrize("decimals", [0, 1, 2, 9])
@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.9, 0.999, 0.9999999])
def test_top_p_keeps_the_same_however_it_looks(monkeypatch, decimals, top_p):
    room = Room(vocab=3000)
    request = room.join(top_p=top_p)
    logits = random_logits(5, vocab=3000, dtype=torch.float32).round(decimals=decimals)
    logits[3], logits[4, 2:] = 0.0, -torch.inf
    rows = rows_of(*[(request, [])] * 5)
    found = room.pipeline.scores(logits, rows)
    for first, second in ((1, 1), (1, 3000), (3000, 1)):
        monkeypatch.setattr("paceline.sampling.processors.top_p.FIRST_WIDTH", first)
        monkeypatch.setattr("paceline.sampling.processors.top_p.SECOND_WIDTH", second)
        assert torch.equal(room.pipeline.scores(logits, rows), found)
    for row in range(5):
        ordered = logits[row].double().softmax(-1).sort(descending=True).values
        least = ordered[(ordered.cumsum(-1) < top_p).sum().clamp(max=2999)]
        expected = int((logits[row].double().softmax(-1) >= least * (1 - 1e-12)).sum())
        assert abs(int((found[row] > -torch.inf).sum()) - expected) <= (top_p > 0.999999) * 3


def test_ties_with_the_last_kept_score_are_kept():
    room = Room(vocab=4)
    logits = torch.zeros(1, 4)
    for controls in ({"top_k": 1}, {"top_p": 0.1}, {"min_p": 1.0}):
        request = room.join(**controls)
        assert (room.pipeline.scores(logits, rows_of((request, []))) > -torch.inf).all()


def test_low_temperatures_keep_the_noise():
    room = Room(vocab=2)
    request = room.join(temperature=1e-6)
    rows = rows_of(*[(request, [])] * 1)
    scores = room.pipeline.scores(torch.tensor([[30.0, 30.0]]), rows)
    assert scores.tolist() == [[0.0, 0.0]]


def test_a_bias_does_not_lift_a_ban():
    room = Room()
    request = room.join(allowed_token_ids=[3, 4], logit_bias={5: 100.0}, temperature=0.0)
    assert int(room.pipeline.sample(torch.zeros(1, VOCAB), rows_of((request, [])))[0]) == 3


def test_min_tokens_ends_with_the_output_index():
    room = Room()
    request = room.join(temperature=0.0, min_tokens=3, stop_token_ids=[7], eos=(5, 999))
    logits = torch.zeros(4, VOCAB)
    logits[:, 7], logits[:, 5], logits[:, 2] = 3.0, 2.0, 1.0
    assert room.pipeline.sample(logits, chain_rows(request, [2, 2, 2])).tolist() == [2, 2, 2, 7]


def test_bad_words_do_not_see_the_prompt():
    room = Room()
    request = room.join(prompt=[1, 2], temperature=0.0, words=((2, 3),))
    logits = torch.zeros(2, VOCAB)
    logits[:, 3] = 1.0
    assert room.pipeline.sample(logits, chain_rows(request, [2])).tolist() == [3, 0]


def test_draft_tokens_outside_the_vocabulary_are_not_counted():
    room = Room()
    request = room.join(frequency_penalty=1.0, words=((4, 5),), temperature=0.0)
    scores = room.pipeline.scores(torch.zeros(3, VOCAB), chain_rows(request, [VOCAB + 3, 4]))
    assert scores[2].argmin() == 5
    assert scores[2, 4] == -1.0
