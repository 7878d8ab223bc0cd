"""The prefix index finds equal tokens under an equal salt and nothing else, and forgets the oldest leaves first."""

from __future__ import annotations

import numpy as np
import pytest

from paceline.cache import PageAllocator, prefix_indexes
from paceline.cache.prefix import LruPrefixIndex

PAGE = 4


def tokens(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def index_of(num_pages: int = 20, max_entries: int = 20) -> tuple[LruPrefixIndex, PageAllocator]:
    allocator = PageAllocator(num_pages)
    return LruPrefixIndex([allocator], PAGE, max_entries), allocator


def insert(index: LruPrefixIndex, allocator: PageAllocator, values: np.ndarray, salt: str = "") -> list[int]:
    """Files the whole pages of ``values`` under fresh pages, which their writer then gives back."""
    pages = allocator.allocate(len(values) // PAGE)
    assert pages is not None
    index.insert(values, [[page] for page in pages], salt)
    allocator.release(pages)
    allocator.check()
    return pages


def test_only_whole_equal_pages_are_found() -> None:
    index, allocator = index_of()
    pages = insert(index, allocator, tokens(*range(10)))
    assert index.lookup(tokens(*range(10)), "") == [[pages[0]], [pages[1]]]
    assert index.lookup(tokens(*range(7)), "") == [[pages[0]]]
    assert index.lookup(tokens(0, 1, 2, 3, 4, 5, 6, 99), "") == [[pages[0]]]
    assert index.lookup(tokens(99, 1, 2, 3, 4, 5, 6, 7), "") == []
    assert index.lookup(tokens(0, 1, 2), "") == []


def test_a_page_counts_only_behind_its_own_prefix() -> None:
    index, allocator = index_of()
    insert(index, allocator, tokens(1, 1, 1, 1, 5, 6, 7, 8))
    assert index.lookup(tokens(5, 6, 7, 8), "") == []
    assert len(index.lookup(tokens(1, 1, 1, 1, 5, 6, 7, 8), "")) == 2


def test_salts_are_strangers_to_each_other() -> None:
    index, allocator = index_of()
    insert(index, allocator, tokens(*range(8)), salt="a")
    assert index.lookup(tokens(*range(8)), "b") == []
    assert len(index.lookup(tokens(*range(8)), "a")) == 2


def test_inserting_again_keeps_the_first_pages() -> None:
    index, allocator = index_of()
    first = insert(index, allocator, tokens(*range(8)))
    insert(index, allocator, tokens(*range(8)))
    assert index.lookup(tokens(*range(8)), "") == [[page] for page in first]
    assert allocator.num_cached == 2


def test_children_go_before_their_parents_and_the_oldest_first() -> None:
    index, allocator = index_of()
    old = insert(index, allocator, tokens(*range(8)))
    new = insert(index, allocator, tokens(0, 1, 2, 3, 50, 51, 52, 53))
    assert index.evict()
    assert index.lookup(tokens(*range(8)), "") == [[old[0]]]
    assert len(index.lookup(tokens(0, 1, 2, 3, 50, 51, 52, 53), "")) == 2
    assert index.evict()
    assert index.evict()
    assert not index.evict()
    assert allocator.num_free == allocator.num_pages
    assert new


def test_being_found_makes_an_entry_young() -> None:
    index, allocator = index_of()
    for start in (0, 10, 20):
        insert(index, allocator, tokens(*range(start, start + 4)))
    index.lookup(tokens(0, 1, 2, 3), "")
    index.evict()
    assert index.lookup(tokens(0, 1, 2, 3), "")
    assert not index.lookup(tokens(10, 11, 12, 13), "")


def test_referenced_pages_are_never_evicted() -> None:
    index, allocator = index_of()
    pages = insert(index, allocator, tokens(*range(4)))
    allocator.share(pages)
    assert not index.evict()
    allocator.release(pages)
    assert index.evict()


def test_the_number_of_entries_is_bounded() -> None:
    index, allocator = index_of(max_entries=3)
    for start in range(0, 80, 8):
        insert(index, allocator, tokens(*range(start, start + 8)))
        assert len(index) <= 3


def test_an_entry_gains_the_pages_it_lacked() -> None:
    allocators = [PageAllocator(4), PageAllocator(4)]
    index = LruPrefixIndex(allocators, PAGE, 9)
    for allocator in allocators:
        allocator.allocate(1)
    index.insert(tokens(1, 2, 3, 4), [[4, 0]], "")
    index.insert(tokens(1, 2, 3, 4), [[4, 4]], "")
    assert index.lookup(tokens(1, 2, 3, 4), "") == [[4, 4]]


@pytest.mark.parametrize("name", list(prefix_indexes))
def test_every_index_keeps_the_protocol(name: str) -> None:
    index = prefix_indexes[name]([PageAllocator(4)], PAGE, 4)
    assert index.lookup(tokens(1, 2, 3, 4, 5), "") == []
    assert index.evict() is False
