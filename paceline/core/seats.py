"""Seats: the struct-of-arrays of running requests. A request keeps one row from join to leave."""

from __future__ import annotations

import numpy as np

from paceline.core.request import Request


class Seats:
    """Known tokens of the running requests, one row each.

    ``tokens`` int32[S, L], ``num_tokens`` int32[S] (how many of the row are known), ``prompt_len`` int32[S],
    ``longest`` int32[S] (most tokens, prompt and answer, that the request may come to have).
    Other rooms keep their own per-seat arrays under the same row numbers.
    """

    def __init__(self, capacity: int, max_len: int) -> None:
        self.capacity = capacity
        self.max_len = max_len
        self.tokens = np.zeros((capacity, max_len), dtype=np.int32)
        self.num_tokens = np.zeros(capacity, dtype=np.int32)
        self.prompt_len = np.zeros(capacity, dtype=np.int32)
        self.longest = np.zeros(capacity, dtype=np.int32)
        self.requests: list[Request | None] = [None] * capacity
        self._free = list(range(capacity - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def join(self, request: Request) -> int:
        """Seats a request with everything it knows; returns its row."""
        seat = self._free.pop()
        known = request.prompt_token_ids + request.output_token_ids
        self.tokens[seat, : len(known)] = known
        self.num_tokens[seat] = len(known)
        self.prompt_len[seat] = len(request.prompt_token_ids)
        self.longest[seat] = len(request.prompt_token_ids) + request.max_new_tokens
        self.requests[seat] = request
        request.seat = seat
        return seat

    def append(self, seat: int, tokens: list[int]) -> None:
        start = int(self.num_tokens[seat])
        self.tokens[seat, start : start + len(tokens)] = tokens
        self.num_tokens[seat] = start + len(tokens)

    def leave(self, request: Request) -> None:
        self.requests[request.seat] = None
        self.num_tokens[request.seat] = 0
        self._free.append(request.seat)
        request.seat = -1

    def at(self, seat: int) -> Request:
        request = self.requests[seat]
        assert request is not None
        return request
