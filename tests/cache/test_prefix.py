"""The prefix index finds equal tokens under an equal salt and nothing else, and forgets the oldest leaves first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_what_is_discarded_is_found_by_nobody() -> None:
    """One group's page goes, the other's stays, and may be evicted though a sequence still has the first."""
    allocators = [PageAllocator(4), PageAllocator(4)]
    index = LruPrefixIndex(allocators, PAGE, 9)
    pages = [allocator.allocate(1) or [] for allocator in allocators]
    index.insert(tokens(1, 2, 3, 4), [[page for (page,) in pages]], "")
    allocators[0].release(pages[0])
    assert not index.evict()  # the second group's is still referenced
    index.discard(1, [*pages[1], 3])
    assert index.lookup(tokens(1, 2, 3, 4), "") == [[*pages[0], 0]]
    assert allocators[1].writable(pages[1][0])
    assert index.evict()
    allocators[1].release(pages[1])
    assert [allocator.num_free for allocator in allocators] == [4, 4]


@pytest.mark.parametrize("name", list(prefix_indexes))
def test_every_index_keeps_the_protocol(name: str) -> None:
    index = prefix_indexes[name]([PageAllocator(4)], PAGE, 4)
    assert index.lookup(tokens(1, 2, 3, 4, 5), "") == []
    assert index.evict() is False


def test_a_full_index_never_evicts_what_the_newcomer_hangs_on() -> None:
    """The longer prompt's first page is the oldest entry, and idle; it must not go to make room for its own child."""
    index, allocator = index_of(max_entries=2)
    insert(index, allocator, tokens(*range(4)))
    insert(index, allocator, tokens(50, 51, 52, 53))
    insert(index, allocator, tokens(*range(12)))
    assert len(index.lookup(tokens(*range(12)), "")) == 2
    assert len(index) == 2
    assert [index.evict(), index.evict(), index.evict()] == [True, True, False]
    assert allocator.num_free == allocator.num_pages


class Colliding(tuple):
    """A key whose hash is that of every other."""

    __slots__ = ()

    def __hash__(self) -> int:
        return 7


def test_equal_hashes_do_not_make_equal_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    true: Callable[..., tuple[object, bytes]] = LruPrefixIndex._key
    monkeypatch.setattr(LruPrefixIndex, "_key", lambda *arguments: Colliding(true(*arguments)))
    index, allocator = index_of()
    first = insert(index, allocator, tokens(*range(8)))
    second = insert(index, allocator, tokens(*range(8)), salt="b")
    assert index.lookup(tokens(*range(4, 12)), "") == []
    assert index.lookup(tokens(*range(8)), "c") == []
    assert index.lookup(tokens(*range(8)), "") == [[page] for page in first]
    assert index.lookup(tokens(*range(8)), "b") == [[page] for page in second]
    assert len({hash(key) for key in index._entries}) == 1


def test_evicting_looks_at_few_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many old entries are in use, each is looked at once, not once per eviction."""
    index, allocator = index_of(num_pages=3000, max_entries=3000)
    in_use = [insert(index, allocator, tokens(start, 1, 1, 1))[0] for start in range(1000)]
    allocator.share(in_use)
    for start in range(1000, 2000):
        insert(index, allocator, tokens(start, 1, 1, 1))
    looks = 0
    true = LruPrefixIndex._evictable

    def counted(self: LruPrefixIndex, entry: object) -> bool:
        nonlocal looks
        looks += 1
        return true(self, entry)  # type: ignore[arg-type]

    monkeypatch.setattr(LruPrefixIndex, "_evictable", counted)
    assert all(index.evict() for _ in range(1000))
    assert not index.evict()
    assert looks < 6000
    allocator.release(in_use[:1])
    looks = 0
    assert index.evict()
    assert looks < 5


def _oldest_leaf(index: LruPrefixIndex) -> object:
    """What must go next, found the slow way."""
    allocator = index.allocators[0]
    able = [
        entry
        for entry in index._entries.values()
        if not entry.num_children and not any(allocator.references[page] for page in entry.row if page)
    ]
    return min(able, key=lambda entry: entry.last_used, default=None)


def pages_of(index: LruPrefixIndex, values: np.ndarray) -> list[int]:
    return [page for (page,) in index.lookup(values, "") if page]


Call = tuple[str, int, int]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["insert", "hold", "drop", "lookup", "evict", "discard"]),
            st.integers(0, 5),
            st.integers(1, 4),
        ),
        max_size=40,
    )
)
def test_the_oldest_leaf_goes_whatever_was_done_before(calls: list[Call]) -> None:
    index, allocator = index_of(num_pages=60, max_entries=9)
    held: list[list[int]] = []
    for call, branch, pages in calls:
        values = tokens(*([1] * PAGE * (pages - 1) + [branch] * PAGE))
        if call == "insert":
            insert(index, allocator, values)
        elif call == "hold":
            held.append(pages_of(index, values))
            allocator.share(held[-1])
        elif call == "drop" and held:
            allocator.release(held.pop(branch % len(held)))
        elif call == "lookup":
            index.lookup(values, "")
        elif call == "discard":
            index.discard(0, pages_of(index, values)[-1:])
        elif call == "evict":
            expected = _oldest_leaf(index)
            assert index.evict() is (expected is not None)
            assert expected not in index._entries.values()
        allocator.check()
        assert len(index) <= 9
    for entry in index._entries.values():
        assert entry.num_children == sum(other.parent is entry for other in index._entries.values())
        assert entry.parent is None or index._entries[entry.parent.key] is entry.parent
    for pages_held in held:
        allocator.release(pages_held)
    while index.evict():
        pass
    assert len(index) == 0
    assert allocator.num_free == allocator.num_pages
