"""What the sampling room remembers of each seat; knows when requests come and go, not how logits are processed."""

from __future__ import annotations

from copy import copy

import numpy as np
import torch

from paceline.core.request import Request
from paceline.core.seats import Seats
from paceline.sampling.controls import Controls
from paceline.sampling.processors import Processor, processors


class SamplingState(Controls):
    """Controls by seat, the processors in application order, and which of them act on which seat.

    ``seats`` gives each seat's known tokens, which bad words read at every step. The penalties keep counts of the
    tokens that a seat has seen, for the seats that use one.
    """

    def __init__(self, seats: Seats, vocab_size: int, device: torch.device | str) -> None:
        super().__init__(seats, vocab_size, device)
        # The same arrays under another roof: what knows each other is not freed at once.
        controls = copy(self)
        self.processors: tuple[Processor, ...] = tuple(processors[name](controls) for name in processors)
        self.active = np.zeros((seats.capacity, len(self.processors)), dtype=bool)  # [S, processors]

    def join(self, request: Request) -> None:
        """Takes in a request that has its seat, with every output token it already has."""
        self.fill(request)
        self.active[request.seat] = [part.join(request) for part in self.processors]

    def commit(self, seat: int, tokens: list[int]) -> None:
        """Tells the processors which tokens the request in ``seat`` has gained."""
        for index in np.flatnonzero(self.active[seat]):
            self.processors[index].commit(seat, tokens)

    def reset(self) -> None:
        """Forgets every seat."""
        for seat in range(len(self.active)):
            self.leave(seat)

    def leave(self, seat: int) -> None:
        """Forgets everything about the request in ``seat``."""
        for part in self.processors:
            part.leave(seat)
        self.active[seat] = False
        self.clear(seat)
