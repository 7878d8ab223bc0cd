"""Knows how fast this machine reads memory and multiplies right now; nothing of models.

A probe uses the threads and the device of this process, and memory in the pages that it is told. Of several ways to do
the same it takes the fastest: what the machine can do is at least what any program gets out of it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from paceline.core import pages
from paceline.core.errors import ConfigError
from paceline.core.registry import Registry
from paceline.kernels.native import library
from paceline.kernels.native.linear import linear
from paceline.kernels.native.packing import kinds, pack
from paceline.kernels.native.read import UNIT, read_sum

DEFAULT_BYTES = 2**28
LEAST_BYTES, MOST_BYTES = 2**20, 2**31
MATRIX_SIZE = 1024
SECONDS = 0.2
"""How long each probe repeats its work."""
TORCH, NATIVE = "torch", "native"
Work = Callable[[], object]

buffers: Registry[Callable[[int], torch.Tensor]] = Registry("pages")
"""Where the bandwidth probe's memory lies -> bytes[N] of it on the CPU."""
buffers.add("default")(lambda size: torch.empty(size, dtype=torch.uint8))
buffers.add("huge")(lambda size: torch.frombuffer(pages.allocate(size, huge=True), dtype=torch.uint8))
buffers.add("small")(lambda size: torch.frombuffer(pages.allocate(size, huge=False), dtype=torch.uint8))

products: Mapping[str, torch.dtype] = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
    "int4": torch.int8,
}
"""Kind of weights -> the type in which their products can be computed at best."""


@dataclass(frozen=True, slots=True)
class MachineSpeed:
    """What the machine could do at one moment."""

    bytes_per_second: float
    """Reading memory once, in order."""
    flops_per_second: float
    """Of a square matrix product in the work's type; a multiplication and an addition are two."""
    num_bytes: int
    """How much memory was read; what fits a cache is read from it."""
    num_threads: int
    kind: str
    """Of the weights: a name in ``products``."""
    pages: str = "default"
    """Where the memory lay: a name in ``buffers``."""
    reader: str = TORCH
    """What read fastest, and multiplied fastest: torch or the native kernels."""
    multiplier: str = TORCH


class Probes(Protocol):
    def read(self, num_bytes: int | None) -> MachineSpeed:
        """Both probes; the bandwidth probe touches about ``num_bytes``."""
        ...


class MachineProbes:
    """Probes of the machine this process runs on."""

    def __init__(self, device: torch.device, kind: str, *, pages: str = "default", seconds: float = SECONDS) -> None:
        """
        Raises:
            ConfigError: unknown pages, or another kind of memory than the default on a GPU.
        """
        self.device, self.kind, self.pages, self.seconds = device, kind, pages, seconds
        self._allocate = buffers[pages]
        if device.type != "cpu" and pages != "default":
            raise ConfigError(f"the memory of {device} has no pages to choose\nLeave --probe-pages out.")
        self._memory: torch.Tensor | None = None
        self._products = _products(device, kind)

    def read(self, num_bytes: int | None) -> MachineSpeed:
        memory = self._buffer(min(max(num_bytes or DEFAULT_BYTES, LEAST_BYTES), MOST_BYTES))
        reading, reader = self._fastest(_readers(memory))
        multiplying, multiplier = self._fastest(self._products)
        return MachineSpeed(
            bytes_per_second=memory.nbytes / reading,
            flops_per_second=2 * MATRIX_SIZE**3 / multiplying,
            num_bytes=memory.nbytes,
            num_threads=torch.get_num_threads(),
            kind=self.kind,
            pages=self.pages,
            reader=reader,
            multiplier=multiplier,
        )

    def _buffer(self, num_bytes: int) -> torch.Tensor:
        """Memory that was written once, so that it is there; kept for the next reading."""
        size = num_bytes // (4 * UNIT) * 4 * UNIT
        if self._memory is None or self._memory.nbytes != size:
            self._memory = None  # before the next is made
            if self.device.type == "cpu":
                self._memory = self._allocate(size).view(torch.float32).fill_(1.0)
            else:
                self._memory = torch.ones(size // 4, device=self.device)
        return self._memory

    def _fastest(self, ways: Mapping[str, Work]) -> tuple[float, str]:
        return min((self._seconds(work), name) for name, work in ways.items())

    def _seconds(self, work: Work) -> float:
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


def _readers(memory: torch.Tensor) -> dict[str, Work]:
    """float32[N] -> ways to read it all once."""
    found: dict[str, Work] = {TORCH: partial(torch.sum, memory)}
    if memory.device.type == "cpu" and library.reason() is None:
        found[NATIVE] = partial(read_sum, memory.view(torch.int32), out=torch.empty(1, dtype=torch.int32))
    return found


def _products(device: torch.device, kind: str) -> dict[str, Work]:
    """Ways to multiply two square matrices, the right one of this kind."""
    dtype = products[kind]
    left, right = (torch.ones(MATRIX_SIZE, MATRIX_SIZE, dtype=dtype, device=device) for _ in range(2))
    found: dict[str, Work] = {}
    if device.type == "cpu" and kind in kinds and library.reason() is None:
        x = torch.ones(MATRIX_SIZE, MATRIX_SIZE)
        found[NATIVE] = partial(linear, x, pack(torch.ones_like(x), kind), out=torch.empty_like(x))
    if dtype is torch.int8:
        found[TORCH] = partial(torch._int_mm, left, right)
    elif dtype is not torch.float16 or not found:  # on a CPU, torch may take seconds for it
        found[TORCH] = partial(torch.mm, left, right, out=torch.empty_like(left))
    return found
