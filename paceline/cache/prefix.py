"""Knows which pages hold which prefix of tokens, so that equal prompts share them; knows nothing of requests."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from paceline.cache.pages import PageAllocator
from paceline.core.registry import Registry

Tokens = npt.NDArray[np.int32]
PageRow = list[int]
"""The page of each layer group that holds one stretch of tokens; 0 where a group has none."""


class PrefixIndex(Protocol):
    """Pages by the tokens they hold. A page is found only if every token up to its end is equal.

    ``salt`` separates tenants: equal tokens under another salt are never found.
    """

    def lookup(self, tokens: Tokens, salt: str) -> list[PageRow]:
        """One row per whole page of the longest indexed prefix of ``tokens``. Nothing is referenced yet."""
        ...

    def insert(self, tokens: Tokens, rows: list[PageRow], salt: str) -> None:
        """Offers full pages: row i holds tokens[i * page_size : (i + 1) * page_size]."""
        ...

    def evict(self) -> bool:
        """Lets go of the pages of one stretch of tokens that nobody references; False if there is none."""
        ...


PrefixIndexBuilder = Callable[[Sequence[PageAllocator], int, int], PrefixIndex]
"""(allocator of each layer group, page size, most entries) -> index"""

prefix_indexes: Registry[PrefixIndexBuilder] = Registry("prefix index")


class NoPrefixIndex:
    """Remembers nothing."""

    def lookup(self, tokens: Tokens, salt: str) -> list[PageRow]:  # noqa: ARG002
        return []

    def insert(self, tokens: Tokens, rows: list[PageRow], salt: str) -> None:
        pass

    def evict(self) -> bool:
        return False


@dataclass(slots=True, eq=False)
class Entry:
    """One page's worth of tokens behind a certain prefix."""

    key: tuple[object, bytes]
    parent: Entry | None
    row: PageRow
    num_children: int = 0


class LruPrefixIndex:
    """A tree of pages; what was not used for longest goes first, children before their parents.

    An entry's key is its parent and its own tokens, so a hit compares tokens: there is no hash that could collide.
    """

    def __init__(self, allocators: Sequence[PageAllocator], page_size: int, max_entries: int) -> None:
        self.allocators, self.page_size, self.max_entries = list(allocators), page_size, max_entries
        self._entries: OrderedDict[tuple[object, bytes], Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def lookup(self, tokens: Tokens, salt: str) -> list[PageRow]:
        found: list[Entry] = []
        parent: Entry | None = None
        for start in range(0, len(tokens) - self.page_size + 1, self.page_size):
            entry = self._entries.get(self._key(parent, salt, tokens, start))
            if entry is None:
                break
            found.append(entry)
            parent = entry
        self._touch(found)
        return [entry.row for entry in found]

    def insert(self, tokens: Tokens, rows: list[PageRow], salt: str) -> None:
        used: list[Entry] = []
        parent: Entry | None = None
        for number, row in enumerate(rows):
            key = self._key(parent, salt, tokens, number * self.page_size)
            entry = self._entries.get(key)
            if entry is None:
                if len(self._entries) >= self.max_entries and not self.evict():
                    break
                entry = Entry(key, parent, [0] * len(row))
                self._entries[key] = entry
                if parent is not None:
                    parent.num_children += 1
            self._fill(entry, row)
            used.append(entry)
            parent = entry
        self._touch(used)

    def evict(self) -> bool:
        for entry in self._entries.values():
            if entry.num_children == 0 and not self._referenced(entry):
                self._drop(entry)
                return True
        return False

    def _key(self, parent: Entry | None, salt: str, tokens: Tokens, start: int) -> tuple[object, bytes]:
        return (parent if parent is not None else salt, tokens[start : start + self.page_size].tobytes())

    def _touch(self, path: list[Entry]) -> None:
        """Marks entries as just used, the root last, so that a leaf is always older than what it hangs on."""
        for entry in reversed(path):
            self._entries.move_to_end(entry.key)

    def _fill(self, entry: Entry, row: PageRow) -> None:
        """Keeps the offered pages of the groups that the entry has none of; what it has, it keeps."""
        for group, page in enumerate(row):
            if page and not entry.row[group]:
                entry.row[group] = page
                self.allocators[group].keep(page)

    def _referenced(self, entry: Entry) -> bool:
        return any(self.allocators[group].references[page] for group, page in enumerate(entry.row) if page)

    def _drop(self, entry: Entry) -> None:
        del self._entries[entry.key]
        if entry.parent is not None:
            entry.parent.num_children -= 1
        for group, page in enumerate(entry.row):
            if page:
                self.allocators[group].drop(page)


@prefix_indexes.add("none")
def none(_allocators: Sequence[PageAllocator], _page_size: int, _max_entries: int) -> PrefixIndex:
    return NoPrefixIndex()


prefix_indexes.add("lru")(LruPrefixIndex)
