"""Rounds of a step as the op that ends them moves requests on, and as the verifier and the cache do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from paceline.core.batch import Verdict
from paceline.core.step import DraftTrees
from paceline.kernels.native.step_structures import Accept
from paceline.runner.rows import RowSpec
from paceline.speculation.verify.match import MatchVerifier
from tests.runner.steps import (
    MAX_LEN,
    MOST_NODES,
    VOCAB,
    draw_drafts,
    load,
    load_drafts,
    make_part,
    make_seats,
    record,
    some_seats,
)


@dataclass(frozen=True)
class Rounds:
    """Requests, and what is drafted for them and sampled in each round."""

    contexts: list[int]
    sampled: list[bool]
    drafted: list[bool]
    """Whether the drafter takes part in a request."""
    stop_ids: list[list[int]]
    count: int
    width: int
    chain: bool
    odd: float
    """How many rows could not be sampled."""
    dtype: torch.dtype
    layouts: list[tuple[int, int | None]]
    seed: int


@st.composite
def several(draw: Any) -> Rounds:
    size, count = draw(st.sampled_from([1, 1, 2, 3, 8])), draw(st.integers(1, 4))
    lists = {"min_size": size, "max_size": size}
    mostly = st.sampled_from([True, True, True, False])
    return Rounds(
        contexts=draw(st.lists(st.integers(1, 12 if count > 1 else MAX_LEN), **lists)),
        sampled=draw(st.lists(mostly, **lists)),
        drafted=draw(st.lists(mostly, **lists)),
        stop_ids=draw(st.lists(st.just([]) | st.lists(st.integers(0, VOCAB - 1), max_size=2), **lists)),
        count=count,
        width=draw(st.sampled_from([0, 1, 2, 5, 9, MOST_NODES])),
        chain=draw(st.booleans()),
        odd=draw(st.sampled_from([0.0, 0.05, 0.3])),
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16])),
        layouts=draw(st.lists(st.tuples(st.integers(1, 16), st.none() | st.just(5)), min_size=1, max_size=2)),
        seed=draw(st.integers(0, 10**6)),
    )


class World:
    """Requests as the op moves them on, and as the verifier and the cache do."""

    def __init__(self, rounds: Rounds) -> None:
        self.rounds, self.size = rounds, len(rounds.contexts)
        self.random = np.random.default_rng(rounds.seed)
        self.part, self.other = (
            make_part(
                np.random.default_rng(rounds.seed),
                rounds.layouts,
                dtype=rounds.dtype,
                kv_heads=2,
                head_dim=3,
                layers=2,
                feature_size=5,
            )
            for _ in range(2)
        )
        self.seats = make_seats(self.random)
        self.numbers = some_seats(self.random, self.size)
        self.context = np.array(rounds.contexts, dtype=np.int32)
        self.target_end, self.draft_end = self.context - 1, self.context - 1
        self.index = self.random.integers(9, size=self.size)
        self.live = np.array(rounds.sampled)
        self.tokens = self.seats.tokens.copy()
        self.trees = not rounds.chain
        self._record()

    def _record(self) -> None:
        rounds = self.rounds
        width, trees = rounds.width, self.trees
        self.builder = builder = record(
            self.part, self.seats, nodes=width, length=width, rounds=rounds.count, trees=trees
        )
        builder.place(self.part, RowSpec())  # a round has rows before it ends
        builder.accept(builder.samples)
        self.program = builder.finish()
        self.accept = self.program.structure(builder.ops["Accept"][0], Accept)
        self.accept.requests = self.size
        rows = builder.stages[0]
        rows.set_requests(self.size)
        rows.plan(MAX_LEN + MOST_NODES)
        load(
            builder,
            self.numbers,
            context=self.context,
            first_index=self.index,
            target_start=self.target_end,
            draft_start=self.draft_end,
            sampled=self.live,
            depth=np.where(rounds.drafted, rounds.width, 0),
        )
        builder.state.stops.fill(rounds.stop_ids)

    def draw(self) -> tuple[DraftTrees, np.ndarray]:
        """A round's drafts and samples, which follow a path of them as far as chance has it."""
        rounds, random = self.rounds, self.random
        room = [rounds.width] * self.size if rounds.count == 1 else self._room().tolist()
        counts = [
            int(random.integers(min(rounds.width, most) + 1)) * drafted
            for most, drafted in zip(room, rounds.drafted, strict=True)
        ]
        drafts = draw_drafts(random, counts, rounds.width, chain=rounds.chain)
        samples = random.integers(VOCAB, size=(self.size, rounds.width + 1))
        for number, count in enumerate(counts):
            node = -1
            while random.random() < 0.85:
                children = np.flatnonzero(drafts.parents[number, :count] == node)
                if not len(children):
                    break
                child = int(random.choice(children))
                samples[number, node + 1] = drafts.tokens[number, child]
                node = child
        odd = random.random(samples.shape) < rounds.odd
        samples[odd] = random.choice([-1, -2], size=odd.sum())
        return drafts, samples

    def _room(self) -> np.ndarray:
        """Most nodes, so that as many tokens in every round that is left have room behind what is known."""
        left = self.rounds.count - int(self.builder.results.round[0])
        return np.maximum((MAX_LEN - self.context) // left - 1, 0)

    def load(self, drafts: DraftTrees, samples: np.ndarray) -> None:
        load_drafts(self.builder, drafts)
        self.builder.samples[: samples.size] = samples.ravel()

    def judge(self, drafts: DraftTrees, samples: np.ndarray) -> Verdict:
        """What the verifier makes of the rows of those who take part."""
        counts = np.where(self.live, drafts.counts + 1, 0)
        rows = [int(token) for some, count in zip(samples, counts.tolist(), strict=True) for token in some[:count]]
        return MatchVerifier().judge(rows, drafts, np.cumsum([0, *counts]).astype(np.int32))

    def follow(self, drafts: DraftTrees, samples: np.ndarray) -> Verdict:
        """Moves everybody on by hand."""
        verdict = self.judge(drafts, samples)
        for number in np.flatnonzero(self.live).tolist():
            tokens, path = verdict.tokens[number], verdict.path[number]
            seat, first = int(self.numbers[number]), int(self.context[number])
            room = tokens[: MAX_LEN - first]
            self.tokens[seat, first : first + len(room)] = room
            self._move(seat, first, path)
            self.target_end[number] = first + len(path)
            if self.rounds.drafted[number] and self.rounds.width:
                kept = 0 if self.trees else min(len(path), max(int(drafts.counts[number]) - 1, 0))
            else:
                kept = len(tokens)
            self.draft_end[number] = first + kept
            self.context[number] += len(tokens)
            self.index[number] += len(tokens)
            stopped = any(token in self.rounds.stop_ids[number] for token in tokens)
            last = samples[number, path[-1] + 1 if path else 0]
            following = next_of(drafts, number, path, int(last))
            cut = not tokens or (following >= 0 and samples[number, following + 1] < 0)
            self.live[number] = not (stopped or cut)
        return verdict

    def _move(self, seat: int, first: int, path: list[int]) -> None:
        moves = [(node, place) for place, node in enumerate(path) if node != place]
        if moves and self.trees:
            source, target = np.array(moves, dtype=np.int32).T
            for group in self.other.groups:
                group.move(np.full(len(moves), seat), first + source, first + target)


def next_of(drafts: DraftTrees, number: int, path: list[int], token: int) -> int:
    """The node that a walk came to behind ``path``, whose row may not have been sampled; -1 if there is none."""
    node = path[-1] if path else -1
    for child in range(int(drafts.counts[number])):
        if drafts.parents[number, child] == node and drafts.tokens[number, child] == token:
            return child
    return -1
