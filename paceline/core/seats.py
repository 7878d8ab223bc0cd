"""Seats: the struct-of-arrays of running requests. A request keeps one row from join to leave."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from paceline.core.request import Request

Int32 = npt.NDArray[np.int32]


FEW = 4
"""Up to so many rows are written one by one, which takes less time than the arrays that name all their places."""


class Seats:
    """Known tokens of the running requests, one row each.

    ``tokens`` int32[S, L], ``num_tokens`` int32[S] (how many of the row are known), ``prompt_len`` int32[S] (how many
    of those are the prompt's), ``longest`` int32[S] (most tokens that the row may come to hold). Of a sliding context
    the row holds the window, and ``prompt_len`` is negative once output tokens have left it too: ``num_tokens -
    prompt_len`` is the number of output tokens always. ``keeps_logprobs`` and ``needs_prompt_rows`` bool[S] say what is
    made of logits and of rows of the prompt besides tokens.
    Other rooms keep their own per-seat arrays under the same row numbers.
    """

    def __init__(self, capacity: int, max_len: int) -> None:
        self.capacity = capacity
        self.max_len = max_len
        self.tokens = np.zeros((capacity, max_len), dtype=np.int32)
        self.num_tokens = np.zeros(capacity, dtype=np.int32)
        self.prompt_len = np.zeros(capacity, dtype=np.int32)
        self.longest = np.zeros(capacity, dtype=np.int32)
        self.keeps_logprobs, self.needs_prompt_rows = (np.zeros(capacity, dtype=np.bool_) for _ in range(2))
        self.clear()

    def clear(self) -> None:
        """Empties all seats."""
        self.requests: list[Request | None] = [None] * self.capacity
        self.num_tokens[:] = 0
        self._free = list(range(self.capacity - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def join(self, request: Request) -> int:
        """Seats a request with everything it knows; returns its row."""
        seat = self._free.pop()
        self.requests[seat] = request
        request.seat = seat
        self.refill(seat)
        return seat

    def refill(self, seat: int) -> None:
        """Rewrites the row of a request after its window moved."""
        request = self.at(seat)
        known = request.window
        self.tokens[seat, : len(known)] = known
        self.num_tokens[seat] = len(known)
        self.prompt_len[seat] = len(request.prompt_token_ids) - request.num_dropped
        self.longest[seat] = request.longest
        self.keeps_logprobs[seat] = request.keeps_logprobs
        self.needs_prompt_rows[seat] = request.group.needs_prompt_rows

    def num_output(self, seats: Int32) -> npt.NDArray[np.int64]:
        """How many output tokens rows int32[B] know, which is the index of the next one."""
        known: npt.NDArray[np.int64] = (self.num_tokens[seats] - self.prompt_len[seats]).astype(np.int64)
        return known

    def append(self, seats: Int32, tokens: Sequence[list[int]]) -> None:
        """Adds known tokens: ``tokens[i]``, possibly none, to row ``seats[i]``; ``seats`` int32[B], no row twice."""
        if len(seats) <= FEW:
            for seat, some in zip(seats.tolist(), tokens, strict=True):
                first = int(self.num_tokens[seat])
                self.tokens[seat, first : first + len(some)] = some
                self.num_tokens[seat] = first + len(some)
            return
        start, counts = self.num_tokens[seats], np.array([len(some) for some in tokens], dtype=np.int32)
        owner = np.repeat(np.arange(len(seats)), counts)
        ends = np.cumsum(counts)
        place = np.arange(len(owner)) - (ends - counts)[owner]
        self.tokens[seats[owner], start[owner] + place] = [token for some in tokens for token in some]
        self.num_tokens[seats] = start + counts

    def leave(self, request: Request) -> None:
        self.requests[request.seat] = None
        self.num_tokens[request.seat] = 0
        self._free.append(request.seat)
        request.seat = -1

    def at(self, seat: int) -> Request:
        request = self.requests[seat]
        assert request is not None
        return request
