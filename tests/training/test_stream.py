"""Which rows a step sees depends on the seed and the step alone, and weights decide how often a row comes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from paceline.training.data import DataError
from paceline.training.stream import Blocks, TokenStream, WeightedStream


def numbers(first: int, count: int) -> TokenStream:
    return TokenStream(torch.arange(first, first + count), torch.arange(count) % 2 == 0)


def test_a_step_sees_the_same_rows_whenever_it_runs() -> None:
    parts = [WeightedStream(numbers(0, 1000)), WeightedStream(numbers(5000, 300), 1.5)]
    first, again = (Blocks(parts, length=10, batch_size=4, seed=1) for _ in range(2))
    for step in range(30):
        first.batch(step)
    for one, other in zip(first.batch(60), again.batch(60), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(first.batch(60)[0], first.batch(61)[0])
    tokens, reply = first.batch(7)
    assert (tokens[:, 1:] == tokens[:, :-1] + 1).all()
    assert torch.equal(reply, tokens % 2 == 0)


def test_an_epoch_shows_each_row_as_often_as_its_weight_says() -> None:
    parts = [
        WeightedStream(numbers(0, 101)),
        WeightedStream(numbers(1000, 101), 2.0),
        WeightedStream(numbers(2000, 101), 0.5),
    ]
    blocks = Blocks(parts, length=10, batch_size=1, seed=0)
    for epoch in range(3):
        steps = range(epoch * blocks.steps_per_epoch, (epoch + 1) * blocks.steps_per_epoch)
        seen = Counter(int(blocks.batch(step)[0][0, 0]) for step in steps)
        times = {thousand: sorted(n for row, n in seen.items() if row // 1000 == thousand) for thousand in range(3)}
        assert times[0] == [1] * 9
        assert times[1] == [2] * 9
        assert times[2] == [1] * 4


def test_too_little_data_says_which_batch_size_fits() -> None:
    with pytest.raises(DataError, match="--batch-size to 3"):
        Blocks([WeightedStream(numbers(0, 35))], length=10, batch_size=8, seed=0)


def test_a_part_shorter_than_a_row_is_left_out() -> None:
    blocks = Blocks(
        [WeightedStream(numbers(0, 101)), WeightedStream(numbers(1000, 5), 3.0)], length=10, batch_size=1, seed=0
    )
    assert all(blocks.batch(step)[0].max() < 1000 for step in range(20))


def test_rows_cut_in_parts_hold_the_same_tokens() -> None:
    stream = TokenStream(torch.arange(400), torch.arange(400) % 3 == 0)
    blocks = Blocks([WeightedStream(stream)], length=16, batch_size=4, seed=0)
    whole, _ = blocks.batch(3)
    tokens, reply = blocks.batch(3, parts=4)
    assert tokens.shape == reply.shape == (16, 5)
    assert torch.equal(tokens[:, :-1].reshape(4, 16), whole[:, :-1])
    assert torch.equal(tokens[:, 1:].reshape(4, 16), whole[:, 1:])
    assert torch.equal(reply, tokens % 3 == 0)
