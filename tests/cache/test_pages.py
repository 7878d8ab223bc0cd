"""Pages are never lost, never handed out twice, and shared pages are copied before they are written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.cache import DenseStore, KVGroup, PageAllocator
from paceline.core.layer import LayerSpec

SPEC = LayerSpec(num_heads=2, num_kv_heads=1, head_dim=4, scale=0.5)


def group_of(num_pages: int, *, page_size: int = 4, window: int | None = None) -> KVGroup:
    store = DenseStore([SPEC], num_pages=num_pages + 1, page_size=page_size, dtype=torch.float32, device="cpu")
    return KVGroup("test", store, PageAllocator(num_pages), num_seats=4, max_slots=64, window=window)


def write(group: KVGroup, seat: int, slots: list[int], value: float) -> None:
    cells = torch.from_numpy(group.cells(np.full(len(slots), seat, dtype=np.int32), np.array(slots, dtype=np.int32)))
    kv = torch.full((len(slots), 1, 4), value)
    group.store.write(0, kv, kv, cells // group.page_size, cells % group.page_size)


def read(group: KVGroup, seat: int, slot: int) -> float:
    cell = int(group.cells(np.array([seat]), np.array([slot], dtype=np.int32))[0])
    k, _ = group.store.read(0, torch.tensor([cell // group.page_size]))
    return float(k[0, 0, cell % group.page_size, 0])


def test_page_zero_is_never_handed_out() -> None:
    pages = PageAllocator(3)
    assert sorted(pages.allocate(3) or []) == [1, 2, 3]


def test_a_failed_allocation_takes_nothing() -> None:
    pages = PageAllocator(3)
    assert pages.allocate(4) is None
    assert pages.num_free == 3


def test_double_release_is_noticed() -> None:
    pages = PageAllocator(2)
    taken = pages.allocate(1)
    assert taken is not None
    pages.release(taken)
    with pytest.raises(AssertionError, match="released twice"):
        pages.release(taken)


def test_kept_pages_count_as_cached_until_dropped() -> None:
    pages = PageAllocator(2)
    taken = pages.allocate(1)
    assert taken is not None
    pages.keep(taken[0])
    pages.release(taken)
    assert (pages.num_free, pages.num_cached, pages.num_referenced) == (1, 1, 0)
    pages.drop(taken[0])
    assert (pages.num_free, pages.num_cached, pages.num_referenced) == (2, 0, 0)


def test_reserve_is_all_or_nothing() -> None:
    group = group_of(2)
    assert group.reserve(0, 0, 5)
    assert not group.reserve(1, 0, 1)
    assert group.num_pages.tolist() == [2, 0, 0, 0]


def test_a_writer_gets_its_own_copy_of_a_shared_page() -> None:
    group = group_of(4)
    assert group.reserve(0, 0, 6)
    write(group, 0, [0, 1, 2, 3, 4, 5], 1.0)
    group.num_cached[0] = 6
    group.fork(0, 1, 5)
    assert group.pages.num_shared == 2
    assert group.reserve(1, 5, 6)
    write(group, 1, [5], 9.0)
    assert read(group, 0, 5) == 1.0
    assert [read(group, 1, slot) for slot in (0, 4, 5)] == [1.0, 1.0, 9.0]
    group.release(0)
    group.release(1)
    group.pages.check()
    assert group.pages.num_free == 4


def test_clearing_spares_pages_that_others_share() -> None:
    group = group_of(4)
    assert group.reserve(0, 0, 8)
    write(group, 0, list(range(8)), 1.0)
    group.num_cached[0] = 8
    group.fork(0, 1, 4)
    group.clear(0)
    assert read(group, 1, 3) == 1.0
    assert read(group, 0, 7) == 0.0


def test_moving_reads_everything_before_it_writes() -> None:
    group = group_of(4)
    assert group.reserve(0, 0, 8)
    for slot in range(8):
        write(group, 0, [slot], float(slot))
    seats = np.zeros(3, dtype=np.int32)
    group.move(seats, np.array([5, 6, 7], dtype=np.int32), np.array([4, 5, 6], dtype=np.int32))
    assert [read(group, 0, slot) for slot in range(8)] == [0, 1, 2, 3, 5, 6, 7, 7]


def test_a_window_gives_back_what_has_left_it() -> None:
    group = group_of(8, window=5)
    assert group.reserve(0, 0, 16)
    group.num_cached[0] = 14
    group.slide(np.array([0], dtype=np.int32))
    # The next row, at position 14, sees 10..14: pages 0 and 1 (slots 0..7) are gone.
    assert group.first_page[0] == 2
    assert group.pages.num_referenced == 2
    assert group.can_fork(0, 14)
    assert not group.can_fork(0, 8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["reserve", "fork", "release"]), st.integers(0, 3), st.integers(1, 40))))
def test_books_balance_under_any_calls(calls: list[tuple[str, int, int]]) -> None:
    group = group_of(20)
    for call, seat, amount in calls:
        if call == "reserve" and group.reserve(seat, int(group.num_cached[seat]), amount):
            group.num_cached[seat] = max(int(group.num_cached[seat]), min(amount, int(group.num_pages[seat]) * 4))
        elif call == "fork" and not group.num_pages[seat]:
            source = (seat + amount) % 4
            if group.num_pages[source]:
                group.fork(source, seat, min(amount, int(group.num_cached[source])))
        elif call == "release":
            group.release(seat)
        group.pages.check()
        shared = int((group.pages.references > 1).sum())
        assert group.pages.num_shared == shared
