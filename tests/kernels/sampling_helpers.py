"""What the tests of native sampling share: logits of every kind, and every level with several numbers of threads."""

from __future__ import annotations

import numpy as np
import torch

from paceline.kernels.native import library
from paceline.kernels.native.sampling import SeatControls
from paceline.sampling.samplers import in_native
from tests.support.native import on_threads

INFINITY = torch.inf


def kinds_of_rows(vocab, seed):
    """Logits f[N, V] as models give them and as they should not."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(18, vocab, generator=generator)
    hole = torch.rand(vocab, generator=generator) < 0.5
    place = int(torch.randint(vocab, (1,), generator=generator))
    normal[0] *= 0.0
    normal[1] *= -0.0
    normal[2] *= 5
    normal[3] *= 200
    normal[4] = normal[4].round()
    normal[5] = (normal[5] * 4).round() / 2
    normal[6, hole] = -INFINITY
    normal[7] = -INFINITY
    normal[8, place] = torch.nan
    normal[9, place] = INFINITY
    normal[10, hole] = INFINITY
    normal[11] *= 1e-41
    normal[12] *= 1e38
    normal[13] = -INFINITY
    normal[13, place] = -3.0
    normal[14, place] = 60.0
    normal[15] = normal[15].bfloat16().float() + 20
    normal[16, hole] = torch.nan
    normal[17] = -3e38
    return normal


def native(room):
    return in_native.NativeSampler(room.state).sample


def all_levels_and_threads(sample):
    found = []
    for name in library.levels():
        library.select(name)
        for threads in (1, 2, 3):
            with on_threads(threads):
                found.append(sample())
    library.reload()
    return found


def one_seat():
    numbers, integers = np.ones(1), np.zeros(1, dtype=np.int64)
    return SeatControls(numbers, numbers, numbers * 0, numbers, *(integers,) * 3, np.zeros(1, dtype=bool))


def with_copies(room, kinds):
    """Has the controls of these types offer no edits."""

    class Plain:
        def __init__(self, processor):
            self.join, self.commit, self.leave = processor.join, processor.commit, processor.leave
            self.apply = processor.apply

    room.state.processors = tuple(
        Plain(processor) if type(processor) in kinds else processor for processor in room.state.processors
    )
