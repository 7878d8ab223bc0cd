"""Knows how tensors come to lie in huge pages, side by side: weights are streamed, and small pages cost look-ups."""

from __future__ import annotations

import torch

from paceline.core import pages

CHUNK = 64 * 2**20
ALIGNMENT = 64


class Arena:
    """Memory in large pieces; a piece is given back once no tensor in it is used any more."""

    def __init__(self) -> None:
        self._piece = memoryview(b"")
        self._used = 0

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """A contiguous copy of a CPU tensor."""
        needed = -(-max(tensor.nbytes, 1) // ALIGNMENT) * ALIGNMENT
        if self._used + needed > len(self._piece):
            self._piece, self._used = pages.allocate(max(needed, CHUNK), huge=True), 0
        place = torch.frombuffer(self._piece, dtype=torch.uint8, count=tensor.nbytes, offset=self._used)
        self._used += needed
        copied: torch.Tensor = place.view(tensor.dtype).view(tensor.shape)
        return copied.copy_(tensor)
