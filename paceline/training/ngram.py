"""An interpolated Kneser-Ney 5-gram model over token ids: the baseline beside which a held-out loss means something.

Each order has one absolute discount, estimated as n1 / (n1 + 2 n2) from its counts of counts; lower orders count the
distinct tokens that precede an n-gram, not its occurrences (Kneser and Ney 1995; Chen and Goodman 1998, interpolated);
below the unigrams lies the uniform distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

ORDER = 5
UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Level:
    """The n-grams of one order. An n-gram's id is its place in ``keys``."""

    keys: Int64
    """[G] sorted; the id of the n-gram's first n - 1 tokens times the vocabulary's size, plus its last token."""
    counts: Float64
    """[G] occurrences; below the highest order, distinct predecessors."""
    totals: Float64
    """[H] sum of ``counts`` after each context of n - 1 tokens."""
    kinds: Float64
    """[H] how many different tokens followed it."""
    discount: float

    def find(self, keys: Int64) -> Int64:
        """Ids of the n-grams, or UNKNOWN."""
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[places] == keys, places, UNKNOWN)


class NgramModel:
    """Learns from one sequence of tokens int64[n], and tells the loss of each token of another."""

    def __init__(self, tokens: Int64, *, vocab_size: int, order: int = ORDER) -> None:
        self.vocab_size = vocab_size
        keys, firsts, occurrences, ids = [], [], [], np.zeros(len(tokens) + 1, dtype=np.int64)
        per_order = []
        for n in range(1, min(order, len(tokens)) + 1):
            # ids[i] is the (n-1)-gram that ends before the n-gram's last token.
            unique, first, ids, counts = np.unique(
                ids[: len(ids) - 1] * vocab_size + tokens[n - 1 :],
                return_index=True,
                return_inverse=True,
                return_counts=True,
            )
            keys.append(unique)
            firsts.append(first)
            occurrences.append(counts)
            per_order.append(ids)
        self.levels = [
            _level(keys, self._counts(n, firsts, occurrences, per_order), n, vocab_size) for n in range(len(keys))
        ]

    @staticmethod
    def _counts(n: int, firsts: Sequence[Int64], occurrences: Sequence[Int64], ids: Sequence[Int64]) -> Float64:
        """Occurrences at the highest order; else of how many distinct longer n-grams this one is the end."""
        if n == len(firsts) - 1:
            return occurrences[n].astype(np.float64)
        # The longer n-gram that begins at place i ends with the n-gram that begins at i + 1.
        suffixes = ids[n][firsts[n + 1] + 1]
        return np.bincount(suffixes, minlength=len(occurrences[n])).astype(np.float64)

    def losses(self, tokens: Int64) -> Float64:
        """[n] nats of each token after up to ``order - 1`` tokens before it."""
        chance = np.full(len(tokens), 1.0 / self.vocab_size)
        contexts = np.zeros(len(tokens) + 1, dtype=np.int64)
        for n, level in enumerate(self.levels):
            before, last = contexts[: len(tokens) - n], tokens[n:]
            known = before != UNKNOWN
            ids = np.where(known, level.find(before * self.vocab_size + last), UNKNOWN)
            chance[n:] = _interpolate(level, before, ids, known, chance[n:])
            contexts = ids
        nats: Float64 = -np.log(chance)
        return nats


def _interpolate(level: Level, before: Int64, ids: Int64, known: npt.NDArray[np.bool_], lower: Float64) -> Float64:
    """The chances one order up: contexts that were never continued leave those of the order below."""
    total = np.where(known, level.totals[before], 0.0)
    seen = total > 0
    count = np.where(ids != UNKNOWN, level.counts[ids], 0.0)
    share = np.maximum(count - level.discount, 0.0) + level.discount * level.kinds[before] * lower
    chance: Float64 = np.where(seen, share / np.where(seen, total, 1.0), lower)
    return chance


def _level(keys: Sequence[Int64], counts: Float64, n: int, vocab_size: int) -> Level:
    contexts = keys[n] // vocab_size
    size = len(keys[n - 1]) if n else 1
    totals: Float64 = np.bincount(contexts, weights=counts, minlength=size).astype(np.float64)
    kinds: Float64 = np.bincount(contexts, weights=counts > 0, minlength=size).astype(np.float64)
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    discount = once / (once + 2 * twice) if once and twice else 0.75
    return Level(keys[n], counts, totals, kinds, discount)
