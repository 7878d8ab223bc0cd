"""A set of token ids as one bit per token of a vocabulary, however many they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from typing import overload

MAX_SET_TOKEN = 2**24 - 1
"""Largest id in a set: 64 times the largest vocabularies, and 2 MiB of bits."""
_TO_DIGITS = bytes.maketrans(b"\0\1", b"01")
_FROM_DIGITS = bytes.maketrans(b"01", b"\0\1")


class TokenSet(Sequence[int]):
    """Ids in rising order, each once; equal to any list or tuple of the same. Never changes, and can be hashed."""

    __slots__ = ("_count", "bits")

    def __init__(self, bits: bytes) -> None:
        self.bits = bits.rstrip(b"\0")
        """Bit i % 8 of byte i // 8, from the lowest, is set if the id i is in the set."""
        self._count = int.from_bytes(self.bits, "little").bit_count()

    @classmethod
    def of(cls, ids: Iterable[int]) -> TokenSet:
        """Of ids in [0, MAX_SET_TOKEN]."""
        ids = list(ids)
        flags = bytearray(max(ids, default=-1) + 1)
        for token in ids:
            flags[token] = 1
        number = int(flags.translate(_TO_DIGITS)[::-1], 2) if flags else 0
        return cls(number.to_bytes(-(-len(flags) // 8), "little"))

    @property
    def highest(self) -> int:
        """The largest id; -1 of an empty set."""
        return int.from_bytes(self.bits, "little").bit_length() - 1

    def __iter__(self) -> Iterator[int]:
        digits = f"{int.from_bytes(self.bits, 'little'):b}"[::-1].encode()
        return compress(range(len(digits)), digits.translate(_FROM_DIGITS))

    def __contains__(self, token: object) -> bool:
        inside = isinstance(token, int) and 0 <= token < 8 * len(self.bits)
        return inside and bool(self.bits[int(token) // 8] >> int(token) % 8 & 1)  # type: ignore[call-overload]

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[int, ...]: ...
    def __getitem__(self, index: int | slice) -> int | tuple[int, ...]:
        return tuple(self)[index]

    def __len__(self) -> int:
        return self._count

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TokenSet):
            return self.bits == other.bits
        return tuple(self) == tuple(other) if isinstance(other, tuple | list) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        few = [str(token) for token, _ in zip(self, range(9), strict=False)]
        return f"({', '.join(few[:8])}{f', ... {len(self)} in all' if len(few) > 8 else ','})"
