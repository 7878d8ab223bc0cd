"""Knows, per seat, how much of a sequence one layer group has cached and in which pages."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from paceline.cache.pages import PageAllocator
from paceline.cache.stores import KVStore
from paceline.core.batch import Int32, Int64

Bool = npt.NDArray[np.bool_]


class KVGroup:
    """Layers of one lifetime: the same window, the same owner, hence the same pages and the same ``num_cached``.

    ``num_cached`` int32[S] tokens whose K/V is valid; ``page_table`` int32[S, P], 0 where no page is held;
    pages [first_page, num_pages) of a seat are held.
    """

    def __init__(
        self, name: str, store: KVStore, pages: PageAllocator, *, num_seats: int, max_slots: int, window: int | None
    ) -> None:
        self.name, self.store, self.pages, self.window = name, store, pages, window
        self.page_size = store.page_size
        self.num_cached = np.zeros(num_seats, dtype=np.int32)
        self.num_pages = np.zeros(num_seats, dtype=np.int32)
        self.first_page = np.zeros(num_seats, dtype=np.int32)
        self.page_table = np.zeros((num_seats, -(-max_slots // self.page_size)), dtype=np.int32)

    def num_missing(self, num_tokens: int, num_shared: int) -> int:
        """Pages that a fresh sequence of ``num_tokens`` tokens takes, if it shares its first ``num_shared``."""
        return -(-num_tokens // self.page_size) - num_shared // self.page_size

    def num_released(self, seats: Int32) -> int:
        """Pages that nobody would reference any more, if these seats gave back theirs."""
        if not len(seats):
            return 0
        held = np.zeros_like(self.pages.references)
        for seat in seats.tolist():
            np.add.at(held, self.held_pages(seat), 1)
        return int(np.count_nonzero((held > 0) & (held == self.pages.references)))

    def holds(self, seats: Int32, ends: Int32) -> bool:
        """Whether slots [0, ends) of each seat have pages, and none that it writes next must be copied first."""
        return not self.lacks(seats, ends).any()

    def lacks(self, seats: Int32, ends: Int32) -> Bool:
        """[B] whether slots [0, ends) of a seat lack a page, or the one that it writes next must be copied first."""
        lacking: Bool = ends > self.num_pages[seats] * self.page_size
        if self.pages.num_shared:
            number = np.minimum(self.num_cached[seats] // self.page_size, self.page_table.shape[1] - 1)
            lacking |= self.pages.references[self.page_table[seats, number]] > 1
        return lacking

    def could_hold(self, seats: Int32, ends: Int32) -> bool:
        """Whether there are pages for slots [0, ends) of all seats, if the prefix index gives up its own."""
        missing = np.maximum(0, -(-ends // self.page_size) - self.num_pages[seats])
        return int(missing.sum()) <= self.pages.num_free + self.pages.num_cached

    def reserve(self, seat: int, start: int, end: int) -> bool:
        """Makes slots [start, end) of a seat writable; False, and nothing changed, if pages are short."""
        held = int(self.num_pages[seat])
        needed = max(0, -(-end // self.page_size) - held)
        shared = self._shared_pages(seat, start)
        if not (needed or shared):
            return True
        taken = self.pages.allocate(needed + len(shared))
        if taken is None:
            return False
        for index in shared:
            self._replace(seat, index, taken.pop())
        self.page_table[seat, held : held + needed] = taken
        self.num_pages[seat] = held + needed
        return True

    def _shared_pages(self, seat: int, start: int) -> list[int]:
        """Pages from slot ``start`` on that another sequence or the prefix index also holds: copy on write."""
        if not self.pages.num_shared:
            return []
        first = start // self.page_size
        held = self.page_table[seat, first : self.num_pages[seat]]
        return [first + int(i) for i in np.flatnonzero(self.pages.references[held] > 1)]

    def _replace(self, seat: int, index: int, fresh: int) -> None:
        old = int(self.page_table[seat, index])
        self.store.copy_page(old, fresh)
        self.page_table[seat, index] = fresh
        self.pages.release([old])

    def can_fork(self, source: int, num_tokens: int) -> bool:
        """Whether the source still holds every page that a sequence of its first ``num_tokens`` tokens reads."""
        return self.keeps(np.array([source]), np.array([num_tokens]))

    def keeps(self, seats: Int32 | Int64, slots: Int32 | Int64) -> bool:
        """Whether each seat still holds every page that its row at this slot reads."""
        if self.window is None:
            return True
        first = np.maximum(0, slots - self.window + 1)
        return bool((self.first_page[seats] * self.page_size <= first).all())

    def fork(self, source: int, target: int, num_tokens: int) -> None:
        """Gives ``target`` the source's first ``num_tokens`` cached tokens by sharing their pages."""
        count = -(-num_tokens // self.page_size)
        first = int(self.first_page[source])
        self.page_table[target, :count] = self.page_table[source, :count]
        self.pages.share(self.page_table[source, first:count].tolist())
        self.num_pages[target], self.first_page[target] = count, min(first, count)
        self.num_cached[target] = num_tokens

    def slide(self, seats: Int32) -> None:
        """Releases pages that have left the window."""
        if self.window is None:
            return
        firsts = np.maximum(0, self.num_cached[seats] - self.window + 1) // self.page_size
        for seat, first in zip(seats.tolist(), firsts.tolist(), strict=True):
            old = int(self.first_page[seat])
            if first > old:
                self.pages.release(self.page_table[seat, old:first].tolist())
                self.page_table[seat, old:first] = 0
                self.first_page[seat] = first

    def adopt(self, seat: int, pages: list[int]) -> None:
        """Gives a fresh seat pages that already hold its first tokens, shared with whoever has them."""
        self.pages.share(pages)
        self.page_table[seat, : len(pages)] = pages
        self.num_pages[seat] = len(pages)
        self.num_cached[seat] = len(pages) * self.page_size

    def release(self, seat: int) -> None:
        """Gives back every page of a seat."""
        self.pages.release(self.held_pages(seat))
        self.page_table[seat] = 0
        self.num_pages[seat] = self.first_page[seat] = self.num_cached[seat] = 0

    def reset(self) -> None:
        """Makes every page free, whatever tables and counts say. What sequences held is zeroed: it may hold NaN."""
        held = np.union1d(np.flatnonzero(self.pages.references), self.page_table)
        self.store.clear_pages([0, *held[held > 0].tolist()])
        self.pages.clear()
        for array in (self.page_table, self.num_pages, self.first_page, self.num_cached):
            array[:] = 0

    def held_pages(self, seat: int) -> list[int]:
        held: list[int] = self.page_table[seat, self.first_page[seat] : self.num_pages[seat]].tolist()
        return held

    def clear(self, seat: int) -> None:
        """Gives back every page of a seat, zeroing those that nobody else sees: they may hold NaN."""
        self.store.clear_pages([page for page in self.held_pages(seat) if self.pages.writable(page)])
        self.release(seat)

    def cells(self, seats: Int32, slots: Int32) -> Int64:
        """Physical cells of logical slots: i64, same shape as ``slots``."""
        number, offset = np.divmod(slots, self.page_size)
        cells: Int64 = np.multiply(self.page_table[seats, number], self.page_size, dtype=np.int64)
        cells += offset
        return cells

    def move(self, seats: Int32, source: Int32, target: Int32) -> None:
        """Moves K/V of logical slots within their seats; closes the gaps that rejected tree nodes leave."""
        from_cells, to_cells = self.cells(seats, source), self.cells(seats, target)
        self.store.move(torch.from_numpy(from_cells), torch.from_numpy(to_cells))
