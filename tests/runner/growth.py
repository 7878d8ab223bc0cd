"""Requests that are drafted for in front of an eager and of a native builder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from paceline.runner.eager import DraftStart, EagerBuilder
from paceline.runner.native.graph import STRUCTS
from tests.runner.steps import MAX_LEN, MOST_NODES, VOCAB, load, make_part, make_seats, record, some_seats
from tests.support.seating import Room


@dataclass(frozen=True)
class Growth:
    """Requests that are drafted for, level by level."""

    depths: list[int]
    stop_ids: list[list[int]]
    levels: int
    width: int
    """Nodes of a tree's level."""
    vocab: int
    odd: float
    """How many rows are none to sample from, or have odd logits."""
    seed: int


@st.composite
def growths(draw: Any) -> Growth:
    levels, count = draw(st.integers(1, 5)), draw(st.integers(1, 8))
    lists = {"min_size": count, "max_size": count}
    return Growth(
        depths=draw(st.lists(st.integers(0, levels), **lists)),
        stop_ids=draw(st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=2), **lists)),
        levels=levels,
        width=draw(st.integers(1, 7)),
        vocab=draw(st.integers(1, 9)),
        odd=draw(st.sampled_from([0.0, 0.1, 0.3])),
        seed=draw(st.integers(0, 99)),
    )


class Growing:
    """The same requests in front of an eager and of a native builder."""

    def __init__(self, growth: Growth, *, nodes: int, trees: bool) -> None:
        self.growth, self.random = growth, np.random.default_rng(growth.seed)
        self.count = len(growth.depths)
        self.part, self.seats = make_part(self.random, [(4, None)]), make_seats(self.random)
        self.numbers = some_seats(self.random, self.count)
        context = self.random.integers(2, MAX_LEN, size=self.count).astype(np.int32)
        depth = np.array(growth.depths, dtype=np.int32)
        start = np.where(depth > 0, context - self.random.integers(0, 2, size=self.count) - 1, context)
        index = self.random.integers(9, size=self.count)
        self.start = DraftStart(self.numbers, context, start.astype(np.int32), index, depth, growth.stop_ids)
        self.eager = EagerBuilder(
            self.start,
            seats=self.seats,
            pipeline=Room(vocab=growth.vocab).pipeline,
            target=None,
            num_nodes=nodes,
            max_rows=10**6,
        )
        self.native = record(make_part(self.random, [(4, None)]), self.seats, nodes=nodes, trees=trees)
        self.native.side(self.part)

    def load(self) -> None:
        start = self.start
        load(
            self.native,
            self.numbers,
            context=start.context,
            first_index=start.output_index,
            draft_start=start.start,
            depth=start.depth,
            drafts=start.depth > 0,
        )
        self.native.state.broken[:] = 0
        self.native.state.stops.fill(start.stop_ids)

    def replayer(self, plant: Callable[[Any], None] | None, kind: Any) -> Callable[[int], None]:
        """What runs the first so many ops of the program, anew from where the requests start."""
        program = self.native.finish()
        structs = [program.structure(number, kind) for number in self.native.ops[kind.__name__]]
        for name, numbers in self.native.ops.items():
            for number in numbers:
                program.structure(number, STRUCTS[name]).requests = self.count
        if plant is not None:
            plant(structs[len(structs) // 2])
        for rows in self.native.stages:
            rows.set_requests(self.count)
            rows.plan(MAX_LEN + MOST_NODES)

        def replay(stop: int) -> None:
            self.load()
            program.run({}, stop=stop)

        return replay

    def state(self, name: str) -> np.ndarray:
        return getattr(self.native.state, name)[: self.count]
