"""Knows all layer groups together: reserves, forks, commits and releases a sequence in each of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paceline.cache.group import KVGroup
from paceline.cache.kinds import CacheKind
from paceline.cache.prefix import PageRow, PrefixIndex, Tokens
from paceline.core.batch import Int32
from paceline.core.whole import whole


def _leading(rows: list[PageRow], group: int) -> int:
    """How many rows from the first on have a page of the group."""
    return next((number for number, row in enumerate(rows) if not row[group]), len(rows))


@dataclass(frozen=True, slots=True)
class PageCounts:
    """Pages over all groups: ``free + cached + referenced == total``."""

    free: int
    cached: int
    referenced: int
    total: int


class CacheManager:
    """The groups of the target first, then those of drafters."""

    def __init__(self, groups: Sequence[KVGroup], kind: CacheKind, prefix: PrefixIndex) -> None:
        self.groups, self.kind, self.prefix = list(groups), kind, prefix
        self.torn = False
        self.num_prefix_queries = 0
        """Tokens that were looked up, of each request once."""
        self.num_prefix_hits = 0
        """Tokens that were found."""

    @whole
    def reserve(self, seat: int, end: int, groups: Sequence[int]) -> bool:
        """Makes the uncached slots before ``end`` writable in the given groups; False, nothing changed, if short."""
        chosen = [self.groups[index] for index in groups]
        before = [int(group.num_pages[seat]) for group in chosen]
        for done, group in enumerate(chosen):
            while not group.reserve(seat, int(group.num_cached[seat]), end):
                if self.prefix.evict():
                    continue
                for undone, held in zip(chosen[:done], before, strict=False):
                    self._shrink(undone, seat, held)
                return False
        return True

    @whole
    def reserve_all(self, seats: Int32, ends: Int32, groups: Sequence[int]) -> bool:
        """As ``reserve``, for all seats or none: what some cannot have must not be kept from others."""
        chosen = [self.groups[index] for index in groups]
        if not all(group.could_hold(seats, ends) for group in chosen):
            return False
        lacking = np.logical_or.reduce([group.lacks(seats, ends) for group in chosen])
        seats, ends = seats[lacking], ends[lacking]
        numbers, before = seats.tolist(), [group.num_pages[seats].tolist() for group in chosen]
        if all(self.reserve(seat, end, groups) for seat, end in zip(numbers, ends.tolist(), strict=True)):
            return True
        for group, held in zip(chosen, before, strict=True):
            for seat, count in zip(numbers, held, strict=True):
                self._shrink(group, seat, count)
        return False

    def holds(self, seats: Int32, ends: Int32, groups: Sequence[int]) -> bool:
        """Whether slots [0, ends) are already writable in the given groups, so that nothing needs reserving."""
        return all(self.groups[index].holds(seats, ends) for index in groups)

    @staticmethod
    def _shrink(group: KVGroup, seat: int, held: int) -> None:
        extra = group.page_table[seat, held : group.num_pages[seat]]
        group.pages.release(extra.tolist())
        extra[:] = 0
        group.num_pages[seat] = held

    def can_fork(self, source: int, num_tokens: int, groups: Sequence[int]) -> bool:
        return self.kind.retains and all(self.groups[index].can_fork(source, num_tokens) for index in groups)

    @whole
    def fork(self, source: int, target: int, num_tokens: int, groups: Sequence[int]) -> None:
        """Shares the source's cached prefix, of at most ``num_tokens`` tokens, with a fresh seat."""
        for index in groups:
            group = self.groups[index]
            group.fork(source, target, min(num_tokens, int(group.num_cached[source])))

    @whole
    def attach_prefix(self, seat: int, tokens: Tokens, salt: str, groups: Sequence[int], targets: Sequence[int]) -> int:
        """Gives a fresh seat the indexed pages of its tokens, in each group as far as that has them.

        Returns how many tokens the target's groups, which must agree, need not compute.
        """
        rows = self.prefix.lookup(tokens, salt)
        shared = min((_leading(rows, index) for index in targets), default=0)
        for index in groups:
            count = min(shared, _leading(rows, index))
            self.groups[index].adopt(seat, [row[index] for row in rows[:count]])
        return shared * self.kind.page_size

    def count_prefix(self, num_looked_up: int, num_found: int) -> None:
        """Counts a lookup: whoever attached a prefix knows whether it was for the first time, and of use."""
        self.num_prefix_queries += num_looked_up
        self.num_prefix_hits += num_found

    @whole
    def publish_prefix(self, seat: int, tokens: Tokens, salt: str) -> None:
        """Offers a seat's full pages to the prefix index; ``tokens`` are all it knows."""
        full = [int(group.num_cached[seat]) // group.page_size for group in self.groups]
        rows = [
            [
                int(group.page_table[seat, number]) if number < full[index] else 0
                for index, group in enumerate(self.groups)
            ]
            for number in range(max(full))
        ]
        self.prefix.insert(tokens, rows, salt)

    @whole
    def commit(self, seats: Int32, num_cached: Int32, groups: Sequence[int]) -> None:
        """Sets how many tokens are valid, and releases pages that no later row reads."""
        for index in groups:
            group = self.groups[index]
            group.num_cached[seats] = num_cached
            if self.kind.retains:
                group.slide(seats)
            else:
                for seat in seats.tolist():
                    group.release(seat)

    @whole
    def release(self, seat: int) -> None:
        for group in self.groups:
            group.release(seat)

    @whole
    def clear(self, seat: int) -> None:
        """As ``release``, but zeroes what nobody else sees, lest its NaN reach the pages' next owner."""
        for group in self.groups:
            group.clear(seat)

    @whole
    def discard(self, seat: int, groups: Sequence[int]) -> None:
        """As ``clear``, in the given groups, and of what the prefix index has of theirs: no later request finds it."""
        for index in groups:
            group = self.groups[index]
            self.prefix.discard(index, group.held_pages(seat))
            group.clear(seat)

    def reset(self) -> None:
        """Makes every page free and forgets all prefixes, whatever an exception left half done."""
        self.prefix.clear()
        for group in self.groups:
            group.reset()
        self.torn = False

    def counts(self) -> PageCounts:
        pages = [group.pages for group in self.groups]
        return PageCounts(
            free=sum(p.num_free for p in pages),
            cached=sum(p.num_cached for p in pages),
            referenced=sum(p.num_referenced for p in pages),
            total=sum(p.num_pages for p in pages),
        )

    def check(self) -> None:
        """Raises AssertionError if a page is lost, free and used at once, or referenced without being in any table."""
        for group in self.groups:
            group.pages.check()
            held = np.zeros_like(group.pages.references)
            for seat in np.flatnonzero(group.num_pages):
                np.add.at(held, group.held_pages(int(seat)), 1)
            assert np.array_equal(held, group.pages.references), f"{group.name}: references differ from the tables"
