"""Knows how fast this machine reads memory and multiplies right now; nothing of models.

A probe uses the threads, the device and the allocator of this process, hence its huge-page setting too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

DEFAULT_BYTES = 2**28
LEAST_BYTES, MOST_BYTES = 2**20, 2**31
MATRIX_SIZE = 1024
SECONDS = 0.2
"""How long each probe repeats its work."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the machine could do at one moment."""

    bytes_per_second: float
    """Reading memory once, in order."""
    flops_per_second: float
    """Of a square matrix product in the work's type; a multiplication and an addition are two."""
    num_bytes: int
    """How much memory was read; what fits a cache is read from it."""
    num_threads: int
    dtype: str


class Probes(Protocol):
    def read(self, num_bytes: int | None) -> Reading:
        """Both probes; the bandwidth probe touches about ``num_bytes``."""
        ...


class MachineProbes:
    """Probes of the machine this process runs on."""

    def __init__(self, device: torch.device, dtype: torch.dtype, *, seconds: float = SECONDS) -> None:
        self.device, self.dtype, self.seconds = device, dtype, seconds
        self._memory: torch.Tensor | None = None
        sides = [torch.ones(MATRIX_SIZE, MATRIX_SIZE, dtype=dtype, device=device) for _ in range(3)]
        self._left, self._right, self._product = sides

    def read(self, num_bytes: int | None) -> Reading:
        wanted = min(max(num_bytes or DEFAULT_BYTES, LEAST_BYTES), MOST_BYTES)
        memory = self._buffer(wanted)
        return Reading(
            bytes_per_second=memory.nbytes / self._seconds(lambda: torch.sum(memory)),
            flops_per_second=2 * MATRIX_SIZE**3 / self._seconds(self._multiply),
            num_bytes=memory.nbytes,
            num_threads=torch.get_num_threads(),
            dtype=str(self.dtype).removeprefix("torch."),
        )

    def _buffer(self, num_bytes: int) -> torch.Tensor:
        """Memory that was written once, so that it is there; kept for the next reading."""
        if self._memory is None or self._memory.nbytes != num_bytes // 4 * 4:
            self._memory = None
            self._memory = torch.ones(num_bytes // 4, dtype=torch.float32, device=self.device)
        return self._memory

    def _multiply(self) -> None:
        torch.mm(self._left, self._right, out=self._product)

    def _seconds(self, work: Callable[[], object]) -> float:
        """The median of as many repetitions as there is time for, at least three."""
        work()
        self._wait()
        times: list[float] = []
        end = time.perf_counter() + self.seconds
        while len(times) < 3 or time.perf_counter() < end:
            started = time.perf_counter()
            work()
            self._wait()
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
