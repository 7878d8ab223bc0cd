"""Log-probabilities are torch's, of the logits as the model gave them; ranks and likeliest tokens go by the logits."""

import math

import pytest
import torch

from tests.support.seating import VOCAB, Room, random_logits

pytestmark = pytest.mark.usefixtures("each_sampler")


def near(expected):
    """What float32 makes of it."""
    return pytest.approx(expected, abs=4e-6, rel=3e-7, nan_ok=True)


def check(entry, logits, token, count):
    """One entry against its row of logits f[V], by the definition."""
    expected = logits.double().log_softmax(-1).tolist()
    numbers = logits.tolist()
    ranked = sorted(range(len(numbers)), key=lambda other: (-numbers[other], other))[:count]
    assert entry.token_id == token
    assert entry.rank == 1 + sum(other > numbers[token] for other in numbers)
    assert entry.logprob == near(expected[token])
    assert [other for other, _ in entry.top] == ranked
    assert [value for _, value in entry.top] == near([expected[other] for other in ranked])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_logprobs_are_those_of_log_softmax(dtype):
    room = Room()
    room.join(temperature=0.3, top_k=2, presence_penalty=1.0)
    logits = random_logits(4, dtype=dtype)
    wanted, tokens, top = [3, 0, 3], [5, 6, 7], [0, 4, 30]
    found = room.pipeline.logprobs(logits, wanted, tokens, top)
    for entry, row, token, count in zip(found, wanted, tokens, top, strict=True):
        check(entry, logits[row], token, count)


@pytest.mark.parametrize("vocab", [1, 2, 63, 64, 65, 1000, 5003])
def test_odd_sizes_scales_and_ties(vocab):
    room, logits = Room(vocab=vocab), random_logits(6, vocab=vocab, scale=3.0)
    logits[1], logits[2], logits[3] = logits[1].round(), logits[2] * 20, 0.0
    logits[4, 1::2], logits[5] = -torch.inf, logits[5] * 1e-3
    tokens, top = [vocab - 1, vocab // 2, 0] * 2, [0, 1, 5, min(64, vocab), vocab, vocab + 3]
    for shift in range(6):
        counts = top[shift:] + top[:shift]
        for row, entry in enumerate(room.pipeline.logprobs(logits, list(range(6)), tokens, counts)):
            check(entry, logits[row], tokens[row], counts[row])


def test_equal_tokens_share_the_better_rank():
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0]])
    entry, last = Room(vocab=4).pipeline.logprobs(logits, [0, 0], [2, 3], [2, 1])
    assert entry.rank == 1
    assert [token for token, _ in entry.top] == [1, 2]
    assert [token for token, _ in last.top] == [1]
    assert last.rank == 3


@pytest.mark.parametrize(("broken", "ranks"), [(torch.nan, [1, 1]), (torch.inf, [1, 2]), (-torch.inf, [1, 1])])
def test_rows_without_a_distribution_have_no_logprobs_but_ranks(broken, ranks):
    logits = torch.zeros(1, 100)
    logits[0, 1:] = broken if broken == -torch.inf else 0.0
    logits[0, 0] = broken
    entries = Room(vocab=100).pipeline.logprobs(logits, [0, 0], [0, 7], [3, 2])
    assert [entry.rank for entry in entries] == ranks
    assert [[token for token, _ in entry.top] for entry in entries] == [[0, 1, 2], [0, 1]]
    values = [value for entry in entries for value in (entry.logprob, *(value for _, value in entry.top))]
    assert all(not math.isfinite(value) for value in values)
    assert math.isnan(entries[0].logprob)


def test_a_row_does_not_depend_on_the_others():
    room, logits = Room(vocab=1003), random_logits(9, vocab=1003, dtype=torch.float32)
    together = room.pipeline.logprobs(logits, list(range(9)), list(range(9)), [3] * 9)
    assert together == [room.pipeline.logprobs(logits, [row], [row], [3])[0] for row in range(9)]


def test_strided_rows():
    room, wide = Room(), random_logits(4, vocab=3 * VOCAB)
    expected = room.pipeline.logprobs(wide[::2, 5 : 5 + VOCAB].clone(), [0, 1], [3, 4], [2, 2])
    assert room.pipeline.logprobs(wide[::2, 5 : 5 + VOCAB], [0, 1], [3, 4], [2, 2]) == expected
    assert room.pipeline.logprobs(wide.T.contiguous().T[::2, 5 : 5 + VOCAB], [0, 1], [3, 4], [2, 2]) == expected


def test_nothing_asked_nothing_given():
    assert Room().pipeline.logprobs(random_logits(2), [], [], []) == []


@pytest.mark.parametrize("wrong", [{"token": 8}, {"row": 1}, {"count": 3}, {"logit": 1e-3}])
def test_a_wrong_entry_is_caught(wrong):
    """The control test: another token, row, number of alternatives, or a logit that is a little off would show."""
    room, logits = Room(), random_logits(2)
    (entry,) = room.pipeline.logprobs(logits, [0], [7], [2])
    check(entry, logits[0], 7, 2)
    logits[0, 7] += wrong.get("logit", 0.0)
    with pytest.raises(AssertionError):
        check(entry, logits[wrong.get("row", 0)], wrong.get("token", 7), wrong.get("count", 2))
