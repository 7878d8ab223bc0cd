"""Knows which pages hold which prefix of tokens, so that equal prompts share them; knows nothing of requests."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from paceline.core.registry import Registry

Tokens = npt.NDArray[np.int32]


class PrefixIndex(Protocol):
    """Pages by the tokens they hold. A page is found only if every token up to its end is equal.

    ``salt`` separates tenants: equal tokens under another salt are never found.
    """

    def lookup(self, tokens: Tokens, salt: str) -> list[int]:
        """Pages that hold the longest indexed prefix of ``tokens``, whole pages only."""
        ...

    def insert(self, tokens: Tokens, pages: list[int], salt: str) -> None:
        """Offers full pages: page i holds tokens[i * page_size : (i + 1) * page_size]."""
        ...

    def evict(self, count: int) -> int:
        """Lets go of up to ``count`` pages that nobody references; returns how many."""
        ...


prefix_indexes: Registry[type[PrefixIndex]] = Registry("prefix index")


@prefix_indexes.add("none")
class NoPrefixIndex:
    """Remembers nothing."""

    def lookup(self, tokens: Tokens, salt: str) -> list[int]:  # noqa: ARG002
        return []

    def insert(self, tokens: Tokens, pages: list[int], salt: str) -> None:
        pass

    def evict(self, count: int) -> int:  # noqa: ARG002
        return 0
