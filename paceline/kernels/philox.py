"""Counter-based noise: knows how (key, counter) becomes numbers, not what they are used for.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), in int64
tensor arithmetic, so that it runs wherever torch does. Shape letters: R rows, V vocabulary.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
NUM_ROUNDS = 10
NUM_WORDS = 4

GUMBEL_MIN = -3.1302
"""Below the least value of the noise, -log(33 log 2) = -3.12999..."""
GUMBEL_MAX = 22.8739
"""Above the largest value of the noise, -log(-log(1 - 2**-33)) = 22.87385..."""

_COUNTERS_PER_BLOCK = 16384  # of one dense evaluation: its int64 temporaries then stay in a core's L2 cache


class Domain(IntEnum):
    """What a number is drawn for. Numbers of different domains are independent."""

    TARGET = 0
    """Choosing the target's token. A draft that is verified by matching shares it."""
    DRAFT = 1
    """Choosing a draft's token where a ratio test verifies it."""
    ACCEPT = 2
    """The ratio test's uniform number."""
    RESIDUAL = 3
    """Choosing the token that replaces a rejected one."""


DEPTH_SHIFT = 8
"""Of the counter's last word the low bits are the domain, the twelve above them a draw's depth in its draft."""
PLACE_SHIFT = 20
"""The bits above these are a draw's place among those of its depth."""


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four words of 32 random bits per counter.

    ``counter`` (least word first) and ``key`` are int64 tensors that broadcast together, of which the low 32 bits
    count. Returns four int64 tensors in [0, 2**32), of the broadcast shape: ten rounds mix every input into every
    word. The first rounds mix little, so a row of counters should be passed as [R, 1] and [V / 4], not expanded.
    """
    first, second, third, fourth = counter
    first, third = first & MASK, third & MASK
    low_keys, high_keys = (_round_keys(part, step) for part, step in zip(key, KEY_STEPS, strict=True))
    for low_key, high_key in zip(low_keys, high_keys, strict=True):
        low_product, high_product = first * MULTIPLIERS[0], third * MULTIPLIERS[1]
        first = _mix(high_product, second, low_key)
        third = _mix(low_product, fourth, high_key)
        # The upper halves ride along unmasked: _mix cuts them off one round later.
        second, fourth = high_product, low_product
    return first, second & MASK, third, fourth & MASK


def _round_keys(key: Tensor, step: int) -> tuple[Tensor, ...]:
    rounds = torch.arange(NUM_ROUNDS, device=key.device).view(-1, *[1] * key.dim())
    return (key + rounds * step).unbind(0)


def _mix(product: Tensor, word: Tensor, key: Tensor) -> Tensor:
    return ((product >> 32) ^ word ^ key).bitwise_and_(MASK)


def uniform(seed: Tensor, sample_index: Tensor, output_index: Tensor, domain: Domain | Tensor, token: Tensor) -> Tensor:
    """Uniform numbers in (0, 1), float64, one per broadcast element of the int64 arguments.

    A pure function of its arguments: (word + 0.5) / 2**32, where the key is the 64-bit seed, the counter
    (token // 4, output index, sample index, domain), and the word number token % 4. A tensor of domains may hold
    more than a ``Domain``: ``DEPTH_SHIFT``.
    """
    words = philox(*_counter_and_key(seed, sample_index, output_index, domain, token >> 2))
    chosen = torch.stack(words, -1)
    index = (token & 3).expand(chosen.shape[:-1]).unsqueeze(-1)
    return _to_unit(chosen.gather(-1, index).squeeze(-1).double())


def gumbel(seed: Tensor, sample_index: Tensor, output_index: Tensor, domain: Domain | Tensor, token: Tensor) -> Tensor:
    """Standard Gumbel noise -log(-log(u)) of ``uniform``'s numbers, float64, between GUMBEL_MIN and GUMBEL_MAX."""
    return _to_gumbel(uniform(seed, sample_index, output_index, domain, token))


def gumbel_rows(
    seed: Tensor,
    sample_index: Tensor,
    output_index: Tensor,
    domain: Domain | Tensor,
    vocab_size: int,
    *,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """``gumbel`` of every token for each row, rounded to ``dtype``: int64[R] three or four times -> [R, V].

    Evaluates each counter once for its four tokens; the values are those of ``gumbel`` bit for bit.
    """
    num_counters = -(-vocab_size // NUM_WORDS)
    noise = torch.empty(len(seed), num_counters, NUM_WORDS, dtype=dtype, device=seed.device)
    per_row = (seed[:, None], sample_index[:, None], output_index[:, None])
    domains = domain[:, None] if isinstance(domain, Tensor) else domain
    block = max(1024, _COUNTERS_PER_BLOCK // max(len(seed), 1))
    for start in range(0, num_counters, block):
        counters = torch.arange(start, min(start + block, num_counters), device=seed.device)
        words = philox(*_counter_and_key(*per_row, domains, counters))
        noise[:, start : start + block] = _to_gumbel(_to_unit(torch.stack(words, -1).double()))
    return noise.view(len(seed), num_counters * NUM_WORDS)[:, :vocab_size]


def _counter_and_key(
    seed: Tensor, sample_index: Tensor, output_index: Tensor, domain: Domain | Tensor, group: Tensor
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    domains = domain if isinstance(domain, Tensor) else torch.full_like(sample_index, int(domain))
    return (group, output_index, sample_index, domains), (seed & MASK, (seed >> 32) & MASK)


def _to_unit(words: Tensor) -> Tensor:
    return words.add_(0.5).mul_(2.0**-32)


def _to_gumbel(unit: Tensor) -> Tensor:
    return unit.log_().neg_().log_().neg_()
