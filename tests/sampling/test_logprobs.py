"""Log-probabilities are torch's, of the logits as the model gave them."""

import pytest
import torch

from tests.sampling.seating import VOCAB, Room, random_logits


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_logprobs_are_those_of_log_softmax(dtype):
    room = Room()
    room.join(temperature=0.3, top_k=2, presence_penalty=1.0)
    logits = random_logits(4, dtype=dtype)
    wanted, tokens, top = [3, 0, 3], [5, 6, 7], [0, 4, 30]
    expected = logits.to(torch.float64 if dtype == torch.float64 else torch.float32).log_softmax(-1)
    found = room.pipeline.logprobs(logits, wanted, tokens, top)
    for entry, row, token, count in zip(found, wanted, tokens, top, strict=True):
        ranked = sorted(range(VOCAB), key=lambda other: (-float(expected[row, other]), other))
        assert entry.token_id == token
        assert entry.logprob == float(expected[row, token])
        assert entry.rank == ranked.index(token) + 1
        assert entry.top == tuple((other, float(expected[row, other])) for other in ranked[:count])


def test_equal_tokens_share_the_better_rank():
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0]])
    entry, last = Room(vocab=4).pipeline.logprobs(logits, [0, 0], [2, 3], [2, 1])
    assert entry.rank == 1
    assert [token for token, _ in entry.top] == [1, 2]
    assert last.rank == 3


def test_a_row_does_not_depend_on_the_others():
    room, logits = Room(vocab=1003), random_logits(9, vocab=1003, dtype=torch.float32)
    together = room.pipeline.logprobs(logits, list(range(9)), list(range(9)), [3] * 9)
    assert together == [room.pipeline.logprobs(logits, [row], [row], [3])[0] for row in range(9)]


def test_nothing_asked_nothing_given():
    assert Room().pipeline.logprobs(random_logits(2), [], [], []) == []
