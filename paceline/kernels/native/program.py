"""Knows how ops are recorded once and replayed by one native call; nothing of what they compute or of models."""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from paceline.kernels.native.region import submit
from paceline.kernels.native.structures import Code, Operation

Struct = TypeVar("Struct", bound=ctypes.Structure)
ALIGNMENT = 64


class Program:
    """A list of ops whose structs lie side by side, so that a step sets all their numbers of rows at once."""

    def __init__(self, steps: Sequence[tuple[Code, ctypes.Structure, str]], keep: Sequence[object]) -> None:
        """
        Args:
            steps: code, struct, and the name of the count that its ``rows`` follow; "" for a struct without rows.
            keep: whatever the structs point to.
        """
        self._keep = list(keep)
        places, end = [], 0
        for _, structure, _ in steps:
            places.append(end)
            end += -(-ctypes.sizeof(structure) // ALIGNMENT) * ALIGNMENT
        self._memory = np.zeros(end + ALIGNMENT, dtype=np.uint8)
        first = -self._memory.ctypes.data % ALIGNMENT
        self._places = [first + place for place in places]
        base = self._memory.ctypes.data
        for (_, structure, _), place in zip(steps, self._places, strict=True):
            ctypes.memmove(base + place, ctypes.addressof(structure), ctypes.sizeof(structure))
        self._operations = (Operation * len(steps))(
            *(Operation(code, base + place) for (code, _, _), place in zip(steps, self._places, strict=True))
        )
        self._numbers = self._memory[first : first + end].view(np.int64)
        self._rows = self._fields_of_rows(steps, places)
        self._counts: dict[str, int] = {}
        self._lists: dict[tuple[int | None, int], ctypes.Array[Operation]] = {}

    @staticmethod
    def _fields_of_rows(
        steps: Sequence[tuple[Code, ctypes.Structure, str]], places: Sequence[int]
    ) -> dict[str, np.ndarray]:
        """Count -> indexes of the numbers that follow it."""
        fields: dict[str, list[int]] = defaultdict(list)
        for (_, structure, count), place in zip(steps, places, strict=True):
            if not count:
                continue
            fields[count].append((place + type(structure).rows.offset) // 8)
        return {count: np.array(found) for count, found in fields.items()}

    def structure(self, number: int, kind: type[Struct]) -> Struct:
        """The struct of op ``number`` as it is replayed; what is changed in it counts from the next run on."""
        return kind.from_buffer(self._memory.data, self._places[number])

    def addresses(self, count: str) -> np.ndarray:
        """int64: where the numbers of rows that follow a count lie; what is written there holds from the next op on."""
        places = self._rows.get(count, np.zeros(0, dtype=np.int64))
        return self._numbers.ctypes.data + places.astype(np.int64) * 8

    def replay(self, counts: Mapping[str, int], *, times: int = 1) -> None:
        """As ``run``, ``times`` in one native call, of ops of which some write the numbers of rows themselves.

        ``counts``: the most rows.
        """
        for name, count in counts.items():
            if name in self._rows:
                self._numbers[self._rows[name]] = count
        submit(self._operations if times == 1 else self._list(None, times))

    def run(self, counts: Mapping[str, int], *, stop: int | None = None) -> None:
        """Replays the ops, or those before number ``stop``, over so many rows, on as many threads as torch uses.

        Raises:
            NativeUnavailableError: there are no native kernels.
            MemoryError: there was none for intermediate results.
        """
        for name, count in counts.items():
            if self._counts.get(name) != count and name in self._rows:
                self._numbers[self._rows[name]] = count
                self._counts[name] = count
        submit(self._operations if stop is None else self._list(stop, 1))

    def _list(self, stop: int | None, times: int) -> ctypes.Array[Operation]:
        found = self._lists.get((stop, times))
        if found is None:
            wanted = self._operations[:stop] * times
            found = self._lists[stop, times] = (Operation * len(wanted))(*wanted)
        return found
