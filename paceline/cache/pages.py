"""Knows which pages are free and how often the others are referenced; knows nothing of what is in them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


class PageAllocator:
    """Pages 1..num_pages with reference counts; page 0 takes the writes of padding rows and is never handed out.

    A page is free, referenced (by one or more sequences) or cached (kept by the prefix index alone):
    ``num_free + num_cached + num_referenced == num_pages`` always holds.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._num_used = 0
        """Pages up to this one were handed out at some time."""
        self.clear()

    def clear(self) -> None:
        """Makes every page free."""
        self.references = np.zeros(self.num_pages + 1, dtype=np.int32)
        self._free = list(range(self._num_used, 0, -1))
        """Those that were used before; they go first, so that memory that was never touched stays so."""
        self._kept = np.zeros(self.num_pages + 1, dtype=bool)
        self.num_cached = 0
        """Pages that only the prefix index holds."""
        self.idle: set[int] = set()
        """Cached pages that the prefix index has not yet been told of; it takes them out."""
        self.num_shared = 0
        """Pages with more than one reference; while 0, no write needs a copy."""

    @property
    def num_free(self) -> int:
        return len(self._free) + self.num_pages - self._num_used

    @property
    def num_referenced(self) -> int:
        return int(np.count_nonzero(self.references))

    def allocate(self, count: int) -> list[int] | None:
        """Takes ``count`` free pages, each referenced once; None, and nothing taken, if there are fewer."""
        if count > self.num_free:
            return None
        again = min(count, len(self._free))
        pages = [self._free.pop() for _ in range(again)]
        pages += range(self._num_used + 1, self._num_used + 1 + count - again)
        self._num_used += count - again
        self.references[pages] = 1
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Adds one reference to each page."""
        for page in pages:
            self.num_cached -= int(self.references[page] == 0)
            self.references[page] += 1
            self.num_shared += int(self.references[page] == 2)

    def release(self, pages: Iterable[int]) -> None:
        """Drops one reference of each page; a page that nobody references or keeps becomes free."""
        for page in pages:
            assert self.references[page] > 0, f"page {page} released twice"
            self.references[page] -= 1
            self.num_shared -= int(self.references[page] == 1)
            if self.references[page] == 0:
                self._let_go(page)

    def keep(self, page: int) -> None:
        """The prefix index holds on to a page."""
        self._kept[page] = True
        if self.references[page] == 0:
            self.num_cached += 1
            self.idle.add(page)

    def drop(self, page: int) -> None:
        """The prefix index lets go of a page."""
        self._kept[page] = False
        self.idle.discard(page)
        if self.references[page] == 0:
            self.num_cached -= 1
            self._free.append(page)

    def writable(self, page: int) -> bool:
        """Whether one sequence holds the page and nobody else would see a write to it."""
        return self.references[page] == 1 and not self._kept[page]

    def _let_go(self, page: int) -> None:
        if self._kept[page]:
            self.num_cached += 1
            self.idle.add(page)
        else:
            self._free.append(page)

    def check(self) -> None:
        """Raises AssertionError unless every page is accounted for exactly once."""
        counted = self.num_free + self.num_cached + self.num_referenced
        assert counted == self.num_pages, f"{counted} pages accounted for, {self.num_pages} exist"
        assert self.num_cached == np.count_nonzero(self._kept & (self.references == 0)), "cached pages are miscounted"
        assert len(set(self._free)) == len(self._free), "a page is in the free list twice"
        assert not self.references[self._free].any(), "a free page is referenced"
        assert not self.references[self._num_used + 1 :].any(), "a page that was never handed out is referenced"
        assert max(self._free, default=0) <= self._num_used, "a page was freed that was never handed out"
        assert self.references[0] == 0, "the padding page is referenced"
