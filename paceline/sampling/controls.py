"""The numbers of each seat's request that sampling needs, one array each; knows nothing of how they are applied.

Shape letters: S seats, V vocabulary.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from paceline.core.request import Request
from paceline.core.seats import Seats

SCALARS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "min_tokens",
)


class Controls:
    """Scalar controls by seat. A free seat holds the values that do nothing: it samples at temperature 1.

    ``top_k`` is 0 where every token is kept. ``temperature`` is 0, and ``greedy`` true, where the best token is taken.
    """

    def __init__(self, seats: Seats, vocab_size: int, device: torch.device | str) -> None:
        self.seats = seats
        self.vocab_size = vocab_size
        self.device = torch.device(device)
        size = seats.capacity
        self.temperature = np.ones(size)  # [S]
        self.top_k = np.zeros(size, dtype=np.int64)  # [S]
        self.top_p = np.ones(size)  # [S]
        self.min_p = np.zeros(size)  # [S]
        self.min_p_margin = np.full(size, -np.inf)  # [S] its logarithm
        self.repetition_penalty = np.ones(size)  # [S]
        self.frequency_penalty = np.zeros(size)  # [S]
        self.presence_penalty = np.zeros(size)  # [S]
        self.min_tokens = np.zeros(size, dtype=np.int64)  # [S]
        self.seed = np.zeros(size, dtype=np.int64)  # [S] noise key
        self.sample_index = np.zeros(size, dtype=np.int64)  # [S]
        self.greedy = np.zeros(size, dtype=bool)  # [S]
        self._idle = {name: array[:1].copy() for name, array in self._arrays().items()}

    def _arrays(self) -> dict[str, np.ndarray]:
        names = (*SCALARS, "min_p_margin", "seed", "sample_index", "greedy")
        return {name: getattr(self, name) for name in names}

    def fill(self, request: Request) -> None:
        """Copies the request's numbers to its seat."""
        for name in SCALARS:
            getattr(self, name)[request.seat] = getattr(request.params, name)
        if request.params.top_k < 1 or request.params.top_k >= self.vocab_size:
            self.top_k[request.seat] = 0
        if request.params.min_p > 0:
            self.min_p_margin[request.seat] = math.log(request.params.min_p)
        self.seed[request.seat] = request.seed
        self.sample_index[request.seat] = request.sample_index
        self.greedy[request.seat] = request.params.greedy

    def clear(self, seat: int) -> None:
        for name, array in self._arrays().items():
            array[seat] = self._idle[name][0]

    def column(self, name: str, rows: np.ndarray, like: torch.Tensor) -> torch.Tensor:
        """The scalar ``name`` of seats ``rows`` [R], as f[R, 1] in the dtype and on the device of ``like``."""
        values = torch.from_numpy(getattr(self, name)[rows])
        return values.to(like.device, like.dtype).unsqueeze(1)
