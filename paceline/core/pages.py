"""Knows how to get memory in large or in small pages from the system; needs no torch."""

from __future__ import annotations

import contextlib
import ctypes
import mmap

HUGE = 2**21
"""Bytes of a huge page on x86 and, mostly, on Arm."""


def allocate(num_bytes: int, *, huge: bool) -> memoryview:
    """Zeros that begin where a huge page would; asked to lie in huge pages, or told not to.

    The memory is private: what is shared, as Python's ``mmap`` is unless told otherwise, gets no huge pages for its
    asking on Linux. Nothing promises huge pages; ``huge_share`` tells what there is. It goes with the last view of it,
    and what is never touched takes no memory.

    Raises:
        MemoryError: the system gives no such room.
    """
    room = num_bytes + HUGE
    flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    try:
        pages = mmap.mmap(-1, room, **flags)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"no room for {num_bytes} bytes: {error}") from None
    advice = getattr(mmap, "MADV_HUGEPAGE" if huge else "MADV_NOHUGEPAGE", None)
    if advice is not None:
        with contextlib.suppress(OSError):  # a kernel that was built without huge pages
            pages.madvise(advice)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(pages)) % HUGE
    return memoryview(pages)[start : start + num_bytes]


def huge_share(address: int, smaps: str = "/proc/self/smaps") -> float | None:
    """Which share of the mapping that holds the address lies in huge pages; None where that is not known."""
    resident = huge = 0
    inside = False
    try:
        with open(smaps, encoding="ascii", errors="replace") as lines:
            for line in lines:
                name, _, rest = line.partition(" ")
                if not name.endswith(":"):
                    first, _, last = name.partition("-")
                    inside = int(first, 16) <= address < int(last, 16)
                elif inside and name == "Rss:":
                    resident = int(rest.split()[0])
                elif inside and name == "AnonHugePages:":
                    huge = int(rest.split()[0])
    except (OSError, ValueError):
        return None
    return huge / resident if resident else None
