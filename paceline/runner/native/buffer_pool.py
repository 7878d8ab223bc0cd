"""Memory that recorded graphs share, of which only one runs at a time; what a call leaves there nobody reads."""

from __future__ import annotations

import torch


class BufferPool:
    """Lends memory to a graph that is being recorded, and to the next one once that is done."""

    def __init__(self) -> None:
        self._free: list[torch.Tensor] = []

    def acquire(self, size: int) -> torch.Tensor:
        """float32[at least ``size``], of unknown content: the smallest that is free and large enough."""
        able = [number for number, buffer in enumerate(self._free) if buffer.numel() >= size]
        if not able:
            return torch.empty(size)
        return self._free.pop(min(able, key=lambda number: self._free[number].numel()))

    def release(self, buffers: list[torch.Tensor]) -> None:
        """Other graphs may be recorded over these; whoever replays an earlier one overwrites them."""
        self._free += buffers
