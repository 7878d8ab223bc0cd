"""Knows where stretches of tokens occurred before: chains of equal hashes through a text, a fixed cost per token."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from paceline.core.batch import Int32, Int64

LEVELS = (1, 2, 4, 8)
"""Lengths whose last occurrences are filed; a longer match is found among those of its last 8 tokens."""
MOST = 64
"""Occurrences that are looked at, the latest first."""
BORDER = -1
"""Stands between texts; no match and no continuation goes beyond it."""

_PRIME = 2**31 - 1
_LEFT, _RIGHT, _OWNER = 1_000_003, 715_827_883, 370_248_451


class _Heads(dict[int, int]):
    """By hash, the last position; it takes memory for what is there alone."""

    def __missing__(self, key: int) -> int:
        return -1


class Occurrences:
    """A text that grows at its end, and for every stretch of it where that occurred before.

    Position p of each level in ``LEVELS`` is linked to the last position before it at which as many tokens had the same
    hash, as compressors of the LZ77 family do. A token costs one link per level, whatever the text; what hashes alike
    is compared before it counts. With a capacity (a power of two) the text is a ring, and memory is bounded: a token
    takes its place, an owner and four links, 40 bytes, and the heads 32 bytes.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.num_tokens = 0
        """All that were ever added, evicted ones included."""
        self.oldest = 0
        """The first position that is still there."""
        self.num_links = 0
        """Links made, the operations that adding costs."""
        self.capacity = capacity
        self._ring = -1 if capacity is None else capacity - 1
        self._tokens, self._owners = array("i"), array("i")
        self._links = [array("q") for _ in LEVELS]
        self._heads = [_Heads() if capacity is None else array("q", [-1]) * capacity for _ in LEVELS]
        self._recent = [deque([0] * length, maxlen=length) for length in LEVELS[:-1]]

    def extend(self, tokens: Sequence[int], owner: int = 0) -> None:
        """Adds tokens that belong to ``owner``; of a full ring the oldest tokens fall out."""
        self._make_room(len(tokens))
        (ones, twos, fours), (link1, link2, link4, link8), (head1, head2, head4, head8) = (
            self._recent,
            self._links,
            self._heads,
        )
        ring, base, texts, owners = self._ring, owner * _OWNER, self._tokens, self._owners
        for position, token in enumerate(tokens, self.num_tokens):
            one = (token + base) % _PRIME
            two = (ones[0] * _LEFT + one * _RIGHT) % _PRIME
            four = (twos[0] * _LEFT + two * _RIGHT) % _PRIME
            eight = (fours[0] * _LEFT + four * _RIGHT) % _PRIME & ring
            ones.append(one)
            twos.append(two)
            fours.append(four)
            place, one, two, four = position & ring, one & ring, two & ring, four & ring
            texts[place], owners[place] = token, owner
            link1[place], head1[one] = head1[one], position
            link2[place], head2[two] = head2[two], position
            link4[place], head4[four] = head4[four], position
            link8[place], head8[eight] = head8[eight], position
        self.num_tokens += len(tokens)
        self.num_links += len(tokens) * len(LEVELS)
        if self.capacity is not None:
            self.evict(self.num_tokens - self.capacity)

    def _make_room(self, count: int) -> None:
        held = len(self._tokens)
        count = count if self.capacity is None else min(count, self.capacity - held)
        for column in (self._tokens, self._owners, *self._links):
            column.frombytes(bytes(column.itemsize * count))

    def evict(self, oldest: int) -> None:
        """Forgets what lies before a position."""
        self.oldest = max(self.oldest, oldest)

    def matches(self, tail: Int32, owner: int = 0) -> tuple[int, Int64]:
        """Where the end of ``tail`` [L] occurred with something behind it, as the longest stretch that did.

        Returns:
            its length, 0 if there is none, and positions of its last token, the latest first [m].
        """
        keys = self._keys(tail[-LEVELS[-1] :].tolist(), owner)
        for level in range(len(keys) - 1, -1, -1):
            ends = self._chain(level, keys[level])
            if not len(ends):
                continue
            lengths = self._lengths(ends, tail, owner)
            longest = int(lengths.max())
            if longest >= LEVELS[level]:
                return longest, ends[lengths == longest]
        return 0, np.zeros(0, dtype=np.int64)

    def continuations(self, ends: Int64, depth: int) -> Int32:
        """[m, depth] what followed each position; ``BORDER`` where its text ended."""
        places = ends[:, None] + np.arange(1, depth + 1)
        tokens = np.frombuffer(self._tokens, dtype=np.int32)
        found: Int32 = np.where(places < self.num_tokens, tokens[self._at(places)], np.int32(BORDER))
        return found

    @staticmethod
    def _keys(last: list[int], owner: int) -> list[int]:
        """The hash of the last tokens at each level that they are enough for."""
        hashes = [(token + owner * _OWNER) % _PRIME for token in last]
        keys = hashes[-1:]
        for half in LEVELS[:-1]:
            hashes = [
                (left * _LEFT + right * _RIGHT) % _PRIME for left, right in zip(hashes, hashes[half:], strict=False)
            ]
            keys += hashes[-1:]
        return keys

    def _chain(self, level: int, key: int) -> Int64:
        """Positions with that hash that have a token behind them, the latest first."""
        links, ring, oldest, tokens = self._links[level], self._ring, self.oldest, self._tokens
        last = self.num_tokens - 1
        found: list[int] = []
        position = self._heads[level][key & ring]
        while position >= oldest and len(found) < MOST:
            if position < last and tokens[position + 1 & ring] != BORDER:
                found.append(position)
            position = links[position & ring]
        return np.array(found, dtype=np.int64)

    def _lengths(self, ends: Int64, tail: Int32, owner: int) -> npt.NDArray[np.int64]:
        """[m] how many tokens up to each position equal the last ones of ``tail`` and belong to ``owner``."""
        places = ends[:, None] - np.arange(len(tail))
        at = self._at(places)
        same = (np.frombuffer(self._tokens, dtype=np.int32)[at] == tail[::-1]) & (places >= self.oldest)
        same[:, 0] &= np.frombuffer(self._owners, dtype=np.int32)[at[:, 0]] == owner
        lengths: npt.NDArray[np.int64] = np.logical_and.accumulate(same, axis=1).sum(axis=1)
        return lengths

    def _at(self, places: Int64) -> Int64:
        """Where positions lie, of which those that are not there lie anywhere."""
        inside: Int64 = np.clip(places, 0, self.num_tokens - 1) & self._ring
        return inside
