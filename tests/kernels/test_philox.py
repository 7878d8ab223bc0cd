"""Noise is the published generator, a pure function of its five arguments, and the same dense or pointwise."""

import math

import pytest
import torch

from paceline.kernels.philox import GUMBEL_MAX, GUMBEL_MIN, Domain, gumbel, gumbel_rows, philox, uniform

# Known answers published with Random123: counter words, key words, output words.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def vector(*values):
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers(counter, key, words):
    found = philox(tuple(map(vector, counter)), tuple(map(vector, key)))
    assert tuple(int(word) for word in found) == words


def plain_philox(counter, key):
    counter, key = list(counter), list(key)
    for _ in range(10):
        left, right = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [
            (right >> 32) ^ counter[1] ^ key[0],
            right & 0xFFFFFFFF,
            (left >> 32) ^ counter[3] ^ key[1],
            left & 0xFFFFFFFF,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return counter


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF])
def test_noise_is_the_documented_function(seed):
    sample, output, token = 3, 70_000, 1021
    words = plain_philox(
        (token // 4, output, sample, int(Domain.RESIDUAL)), (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    )
    unit = (words[token % 4] + 0.5) / 2**32
    arguments = (vector(seed), vector(sample), vector(output), Domain.RESIDUAL, vector(token))
    assert uniform(*arguments).item() == unit
    assert gumbel(*arguments).item() == pytest.approx(-math.log(-math.log(unit)), rel=1e-14)


@pytest.mark.parametrize("vocab_size", [1, 3, 4, 5, 257, 1000])
@pytest.mark.parametrize("num_rows", [1, 2, 7])
def test_dense_equals_pointwise(num_rows, vocab_size):
    row = torch.arange(num_rows)
    seed, sample, output = row * 987654321987 - 5, row % 3, row * 11
    dense = gumbel_rows(seed, sample, output, Domain.TARGET, vocab_size)
    assert dense.shape == (num_rows, vocab_size)
    tokens = torch.arange(vocab_size)
    for index in range(num_rows):
        assert torch.equal(gumbel(seed[index], sample[index], output[index], Domain.TARGET, tokens), dense[index])
    broadcast = gumbel(seed[:, None], sample[:, None], output[:, None], Domain.TARGET, tokens)
    assert torch.equal(broadcast, dense)
    backwards = gumbel(seed[:1], sample[:1], output[:1], Domain.TARGET, tokens.flip(0))
    assert torch.equal(backwards.flip(0), dense[0])


def test_blocks_of_a_large_vocabulary_are_seamless():
    one, vocab_size = vector(5), 70_001
    dense = gumbel_rows(one, one, one, Domain.DRAFT, vocab_size)
    tokens = torch.cat([torch.arange(65_500, 65_600), vector(0, 32_767, 32_768, vocab_size - 1)])
    assert torch.equal(gumbel(one, one, one, Domain.DRAFT, tokens), dense[0, tokens])


def test_rounding_to_float32_comes_last():
    one = vector(1)
    exact = gumbel_rows(one, one, one, Domain.TARGET, 999)
    rounded = gumbel_rows(one, one, one, Domain.TARGET, 999, dtype=torch.float32)
    assert torch.equal(rounded, exact.float())


BASE = {"seed": 7, "sample_index": 2, "output_index": 9, "domain": Domain.TARGET, "token": 12}
CHANGES = [
    ("seed", 8),
    ("seed", 7 + 2**32),
    ("seed", 7 - 2**63),
    ("sample_index", 3),
    ("output_index", 10),
    ("token", 13),
    ("token", 16),
    *(("domain", domain) for domain in (Domain.DRAFT, Domain.ACCEPT, Domain.RESIDUAL)),
]


def draw(values):
    numbers = {name: vector(value) for name, value in values.items() if name != "domain"}
    return uniform(**numbers, domain=values["domain"]).item()


@pytest.mark.parametrize(("name", "value"), CHANGES)
def test_noise_differs_over_each_argument(name, value):
    assert draw(BASE) == draw(dict(BASE))
    assert draw(BASE | {name: value}) != draw(BASE)


def test_bounds_hold_and_are_tight():
    ends = torch.tensor([0.5, 2**32 - 0.5], dtype=torch.float64) / 2**32
    low, high = (-(-ends.log()).log()).tolist()
    assert GUMBEL_MIN < low < GUMBEL_MIN + 1e-3
    assert GUMBEL_MAX - 1e-3 < high < GUMBEL_MAX


def test_noise_is_gumbel():
    row = torch.arange(50)
    noise = gumbel_rows(row * 0, row, row * 3, Domain.TARGET, 4000)
    unit = (-(-noise).exp()).exp().flatten()
    counts = torch.histc(unit, bins=100, min=0, max=1)
    expected = unit.numel() / 100
    assert float(((counts - expected) ** 2 / expected).sum()) < 165  # 99 degrees of freedom: one in 30,000
    neighbours = noise - noise.mean()
    for shift in (1, 2, 3, 4):
        correlation = (neighbours[:, shift:] * neighbours[:, :-shift]).mean() / noise.var()
        assert abs(float(correlation)) < 5 / math.sqrt(noise.numel())
