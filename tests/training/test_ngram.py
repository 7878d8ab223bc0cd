"""The baseline is a probability model, agrees with a slow one written from the definition, and learns."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from paceline.training.ngram import NgramModel

VOCAB = 7


def tokens(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB - 1, count)


def slow_chance(learnt: list[int], context: list[int], token: int, order: int) -> float:
    """Interpolated Kneser-Ney from its definition, with dictionaries."""

    def counts(n: int) -> Counter:
        grams = Counter(tuple(learnt[i : i + n]) for i in range(len(learnt) - n + 1))
        if n == order:
            return grams
        longer = {tuple(learnt[i : i + n + 1]) for i in range(len(learnt) - n)}
        return Counter(gram[1:] for gram in longer)

    chance = 1 / VOCAB
    for n in range(1, order + 1):
        found = counts(n)
        once, twice = (sum(value == wanted for value in found.values()) for wanted in (1, 2))
        discount = once / (once + 2 * twice) if once and twice else 0.75
        history = tuple(context[len(context) - n + 1 :])
        after = {gram[-1]: value for gram, value in found.items() if gram[:-1] == history}
        if after:
            total = sum(after.values())
            chance = (max(after.get(token, 0) - discount, 0) + discount * len(after) * chance) / total
    return chance


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_it_agrees_with_the_definition(order: int) -> None:
    learnt, unseen = tokens(200), tokens(40, seed=1)
    losses = NgramModel(learnt, vocab_size=VOCAB, order=order).losses(unseen)
    for place in range(order, len(unseen)):
        context = unseen[place - order + 1 : place].tolist()
        expected = slow_chance(learnt.tolist(), context, int(unseen[place]), order)
        assert losses[place] == pytest.approx(-math.log(expected))


def test_chances_sum_to_one_after_any_context() -> None:
    model = NgramModel(tokens(300), vocab_size=VOCAB)
    for context in (tokens(4, seed=2), np.array([6, 6, 6, 6]), np.array([0, 1, 6, 2])):
        total = sum(math.exp(-model.losses(np.append(context, token))[-1]) for token in range(VOCAB))
        assert total == pytest.approx(1)


def test_what_repeats_is_learnt() -> None:
    model = NgramModel(np.tile(np.arange(6), 50), vocab_size=VOCAB)
    assert model.losses(np.tile(np.arange(6), 3))[5:].max() < 0.05
    assert model.losses(np.array([6])).item() > 1


def test_very_short_texts() -> None:
    assert np.isfinite(NgramModel(np.array([1]), vocab_size=VOCAB).losses(np.array([1, 2]))).all()
    assert len(NgramModel(tokens(50), vocab_size=VOCAB).losses(np.array([3]))) == 1
