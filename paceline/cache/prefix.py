"""Knows which pages hold which prefix of tokens, so that equal prompts share them; knows nothing of requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Protocol

import numpy as np
import numpy.typing as npt

from paceline.cache.pages import PageAllocator
from paceline.core.registry import Registry

Tokens = npt.NDArray[np.int32]
PageRow = list[int]
"""The page of each layer group that holds one stretch of tokens; 0 where a group has none."""
Key = tuple[object, bytes]
"""What an entry is found by: its parent, at the root the salt, and its own tokens."""


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

    def discard(self, group: int, pages: Iterable[int]) -> None:
        """Releases a layer group's pages, as far as it holds them, because their content turned out to be unusable."""
        ...

    def clear(self) -> None:
        """Forgets everything without telling the allocators, which are cleared as well."""
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

    def discard(self, group: int, pages: Iterable[int]) -> None:
        pass

    def clear(self) -> None:
        pass


@dataclass(slots=True, eq=False)
class PrefixEntry:
    """One page's worth of tokens behind a certain prefix."""

    key: Key
    parent: PrefixEntry | None
    row: PageRow
    num_children: int = 0
    last_used: int = 0
    queued: bool = False
    """Whether it stands in the queue of what may be evicted."""


class LruPrefixIndex:
    """A tree of pages; what was not used for longest goes first, children before their parents.

    An entry's key is its parent and its own tokens, and a hit compares both: a hash only says where to look.

    Entries that may be evicted, leaves that nobody references, queue in a heap by their last use. An entry enters it
    when its last child is dropped, or when the allocator tells that its pages have become idle; what has changed since
    is seen when it comes to the front. Hence each use, release and eviction costs O(log n) at most.
    """

    def __init__(self, allocators: Sequence[PageAllocator], page_size: int, max_entries: int) -> None:
        self.allocators, self.page_size, self.max_entries = list(allocators), page_size, max_entries
        self.clear()

    def clear(self) -> None:
        self._entries: dict[Key, PrefixEntry] = {}
        self._holder: list[dict[int, PrefixEntry]] = [{} for _ in self.allocators]
        """Per group: the entry that keeps a page."""
        self._queue: list[tuple[int, PrefixEntry]] = []
        """(last use at the time, entry); no two entries were last used at the same time."""
        self._clock = 0

    def __len__(self) -> int:
        return len(self._entries)

    def lookup(self, tokens: Tokens, salt: str) -> list[PageRow]:
        found: list[PrefixEntry] = []
        parent: PrefixEntry | None = None
        for start in range(0, len(tokens) - self.page_size + 1, self.page_size):
            entry = self._entries.get(self._key(parent, salt, tokens, start))
            if entry is None:
                break
            found.append(entry)
            parent = entry
        self._touch(found)
        return [entry.row for entry in found]

    def insert(self, tokens: Tokens, rows: list[PageRow], salt: str) -> None:
        used: list[PrefixEntry] = []
        parent: PrefixEntry | None = None
        for number, row in enumerate(rows):
            key = self._key(parent, salt, tokens, number * self.page_size)
            entry = self._entries.get(key)
            if entry is None:
                if not self._make_room(parent):
                    break
                entry = PrefixEntry(key, parent, [0] * len(row), last_used=self._now())
                self._entries[key] = entry
                if parent is not None:
                    parent.num_children += 1
            self._fill(entry, row)
            used.append(entry)
            parent = entry
        self._touch(used)

    def evict(self) -> bool:
        self._collect_idle()
        while self._queue:
            last_used, entry = heappop(self._queue)
            entry.queued = False
            if entry.last_used != last_used:
                self._enqueue(entry)
            elif self._evictable(entry):
                self._drop(entry)
                return True
        return False

    def discard(self, group: int, pages: Iterable[int]) -> None:
        for page in pages:
            entry = self._holder[group].pop(page, None)
            if entry is not None:
                entry.row[group] = 0
                self.allocators[group].drop(page)
                self._enqueue(entry)

    def _key(self, parent: PrefixEntry | None, salt: str, tokens: Tokens, start: int) -> Key:
        return (parent if parent is not None else salt, tokens[start : start + self.page_size].tobytes())

    def _touch(self, path: list[PrefixEntry]) -> None:
        """Marks entries as just used, the root last, so that a leaf is always older than what it hangs on."""
        for entry in reversed(path):
            entry.last_used = self._now()

    def _now(self) -> int:
        self._clock += 1
        return self._clock

    def _make_room(self, parent: PrefixEntry | None) -> bool:
        """Whether there is, or can be had, room for one more entry, to hang on ``parent``, which stays."""
        if len(self._entries) < self.max_entries:
            return True
        if parent is None:
            return self.evict()
        parent.num_children += 1
        evicted = self.evict()
        parent.num_children -= 1
        self._enqueue(parent)
        return evicted

    def _fill(self, entry: PrefixEntry, row: PageRow) -> None:
        """Keeps the offered pages of the groups that the entry has none of; what it has, it keeps."""
        for group, page in enumerate(row):
            if page and not entry.row[group]:
                entry.row[group] = page
                self._holder[group][page] = entry
                self.allocators[group].keep(page)

    def _collect_idle(self) -> None:
        for allocator, holder in zip(self.allocators, self._holder, strict=True):
            while allocator.idle:
                self._enqueue(holder[allocator.idle.pop()])

    def _enqueue(self, entry: PrefixEntry) -> None:
        """Queues an entry if it may be evicted; else the end of its last child, or its pages' release, does."""
        if not entry.queued and self._evictable(entry):
            entry.queued = True
            heappush(self._queue, (entry.last_used, entry))

    def _evictable(self, entry: PrefixEntry) -> bool:
        pages = ((group, page) for group, page in enumerate(entry.row) if page)
        return not entry.num_children and not any(self.allocators[group].references[page] for group, page in pages)

    def _drop(self, entry: PrefixEntry) -> None:
        del self._entries[entry.key]
        for group, page in enumerate(entry.row):
            if page:
                del self._holder[group][page]
                self.allocators[group].drop(page)
        if entry.parent is not None:
            entry.parent.num_children -= 1
            self._enqueue(entry.parent)


@prefix_indexes.add("none")
def none(_allocators: Sequence[PageAllocator], _page_size: int, _max_entries: int) -> PrefixIndex:
    return NoPrefixIndex()


prefix_indexes.add("lru")(LruPrefixIndex)
