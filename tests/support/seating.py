"""Requests in seats, as small as sampling tests need them."""

import numpy as np
import torch

from paceline.core.batch import SampleRows
from paceline.core.params import SamplingParams
from paceline.core.request import Group, Request
from paceline.core.seats import Seats
from paceline.sampling import Pipeline, SamplingState

VOCAB = 16


def make_request(params=None, *, prompt=(1, 2, 3), output=(), seed=11, sample_index=0, eos=(0,), words=(), **controls):
    """``words`` are bad words as token ids."""
    params = SamplingParams(**controls) if params is None else params
    group = Group("group", list(prompt), params, bad_words_token_ids=words)
    request = Request("request", group, sample_index, seed, frozenset(eos), 10**6, output_token_ids=list(output))
    group.members.append(request)
    return request


class Room:
    """Seats, state and pipeline of one vocabulary."""

    sampler = "auto"

    def __init__(self, vocab=VOCAB, capacity=8, device="cpu"):
        self.seats = Seats(capacity, 256)
        self.state = SamplingState(self.seats, vocab, device)
        self.pipeline = Pipeline(self.state, self.sampler)

    def join(self, *requests, **controls):
        requests = requests or (make_request(**controls),)
        for request in requests:
            self.seats.join(request)
            self.state.join(request)
        return requests[0]

    def accept(self, request, tokens):
        request.output_token_ids.extend(tokens)
        self.seats.append(np.array([request.seat], dtype=np.int32), [list(tokens)])
        self.state.commit(request.seat, list(tokens))

    def leave(self, request):
        self.state.leave(request.seat)
        self.seats.leave(request)


def rows_of(*entries):
    """One row per (request, path): it decides the token after the request's output and the path."""
    depth = max((len(path) for _, path in entries), default=0)
    path = np.full((len(entries), depth), -1, dtype=np.int32)
    for index, (_, tokens) in enumerate(entries):
        path[index, : len(tokens)] = tokens
    seats = np.array([request.seat for request, _ in entries], dtype=np.int32)
    output_index = [len(request.output_token_ids) + len(tokens) for request, tokens in entries]
    return SampleRows(seats, np.array(output_index, dtype=np.int64), path)


def chain_rows(request, draft):
    """The rows that verify a chain: after the known tokens, and after each draft token."""
    return rows_of(*((request, draft[:length]) for length in range(len(draft) + 1)))


def many_rows(request, count):
    """Rows of one history that decide output tokens 0 to count - 1, as if each came first."""
    empty = np.zeros((count, 0), dtype=np.int32)
    return SampleRows(np.full(count, request.seat, dtype=np.int32), np.arange(count, dtype=np.int64), empty)


def random_logits(num_rows, vocab=VOCAB, seed=0, dtype=torch.float32, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(num_rows, vocab, generator=generator, dtype=torch.float64) * scale).to(dtype)
