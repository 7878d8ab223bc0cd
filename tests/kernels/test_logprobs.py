"""Native log-probabilities have the same bits at every level, on any number of threads, alone and together."""

import numpy as np
import pytest
import torch

from paceline.kernels.native import library
from paceline.kernels.native.logprobs import logprobs
from tests.support.native import needs_library, on_threads
from tests.support.seating import random_logits

pytestmark = needs_library


def bits(found):
    """Everything that was found, NaN equal to NaN."""
    parts = (found.log_sums, found.logits, found.ranks, found.top_tokens, found.top_logits)
    return [part.tobytes() for part in parts]


def of_rows(logits, order):
    tokens = np.arange(len(logits)) * 7 % logits.shape[1]
    top = np.full(len(order), min(5, logits.shape[1]))
    return logprobs(logits, order, tokens[order], top)


@pytest.mark.parametrize("vocab", [1, 64, 1001, 20_011])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_hang_on_neither_level_nor_threads_nor_other_rows(vocab, dtype):
    logits = random_logits(9, vocab=vocab, scale=4.0)
    logits[3], logits[5, 0], logits[6] = -torch.inf, torch.nan, logits[6].round()
    logits = logits.to(dtype)
    order = np.random.default_rng(vocab).permutation(9)
    together = of_rows(logits, order)
    for name in library.levels():
        library.select(name)
        for threads in (1, 2, 3):
            with on_threads(threads):
                assert bits(of_rows(logits, order)) == bits(together)
    library.reload()
    for place, row in enumerate(order):
        alone = of_rows(logits, np.array([row]))
        assert alone.log_sums.tobytes() == together.log_sums[place].tobytes()
        assert (alone.ranks[0], alone.top_tokens[0].tolist()) == (
            together.ranks[place],
            together.top_tokens[place].tolist(),
        )


@pytest.mark.parametrize("scale", [1e-3, 0.5, 3.0, 30.0])
def test_log_sums_are_exact_to_float32(scale):
    logits = random_logits(4, vocab=151_936, scale=scale)
    found = logprobs(logits, np.arange(4), np.zeros(4, dtype=np.int64), np.zeros(4, dtype=np.int64))
    assert found.log_sums == pytest.approx(logits.double().logsumexp(-1).numpy(), rel=0, abs=1e-7)


def test_what_does_not_fit_is_refused():
    logits, two = torch.zeros(2, 8), np.array([0, 1])
    for bad, message in (
        ((logits, two + 1, two, two), "index has 1 to 2"),
        ((logits, two - 1, two, two), "index has -1 to 0"),
        ((logits, two, two + 7, two), "tokens has 7 to 8"),
        ((logits, two, two, two + 8), "top has 8 to 9"),
        ((logits, two, two, two - 1), "top has -1 to 0"),
        ((logits, two, two[:1], two), "tokens must be 2"),
        ((logits[0], two, two, two), "logits has shape"),
        ((logits.T.contiguous().T, two, two, two), "logits has strides"),
    ):
        with pytest.raises(ValueError, match=message):
            logprobs(*bad)
    with pytest.raises(TypeError, match="float64"):
        logprobs(logits.double(), two, two, two)
    assert len(logprobs(logits, two[:0], two[:0], two[:0]).ranks) == 0


def test_a_wrong_row_is_caught():
    """The control test: bits of other rows differ."""
    logits = random_logits(2, vocab=300)
    assert bits(of_rows(logits, np.array([0]))) != bits(of_rows(logits, np.array([1])))
