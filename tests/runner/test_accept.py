"""The op that ends a round takes of a draft what the verifier takes, and moves K/V as the cache does."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from paceline.core.step import DraftTrees
from paceline.kernels.native.region import run
from paceline.kernels.native.step_structures import Cells, MoveCells
from paceline.kernels.native.structures import Code, address
from paceline.runner.native.buffers import pools_of
from paceline.sampling import BANNED
from tests.runner.accept_rounds import Rounds, World, several
from tests.runner.steps import MAX_LEN, VOCAB, Part, make_part
from tests.support.native import needs_library, on_threads

Plant = Callable[[World], None]


def check(rounds: Rounds, plant: Plant | None = None, *, at_once: bool = False) -> None:
    """Round by round, of other drafts and samples each; or all in one call, which ends when every request has."""
    world = World(rounds)
    results, counts = world.builder.results, world.builder.stages[0].counts
    if plant is not None:
        plant(world)
    drafts, samples = world.draw()
    if at_once:
        world.load(drafts, samples)
        world.program.replay(counts, times=rounds.count)
    number = 0
    while number < rounds.count and (number == 0 or world.live.any()):
        if not at_once:
            drafts, samples = world.draw()
            world.load(drafts, samples)
            world.program.replay(counts)
        check_round(world, number, drafts, samples)
        number += 1
        if not at_once:
            check_state(world)
    assert (results.round[0], results.all_ended[0]) == (number, not world.live.any())
    check_state(world)


def check_round(world: World, number: int, drafts: DraftTrees, samples: np.ndarray) -> None:
    results, size, length = world.builder.results, world.size, world.rounds.width
    took_part = world.live.copy()
    verdict = world.follow(drafts, samples)
    for request in range(size):
        place, tokens, path = number * size + request, verdict.tokens[request], verdict.path[request]
        out = results.tokens[place * (length + 1) :][: length + 1].tolist()
        assert results.counts[place] == len(tokens)
        assert out[: len(tokens)] == tokens
        assert results.accepted[place] == len(path)
        assert results.path[place * length :][: len(path)].tolist() == path
        assert results.nodes[place] == drafts.counts[request] * took_part[request]
        assert tokens or out[0] == samples[request, 0] * took_part[request] <= 0
        assert (request in verdict.dead_ends) == (took_part[request] and out[0] == BANNED)


def check_state(world: World) -> None:
    state, size = world.builder.state, world.size
    assert np.array_equal(world.seats.tokens, world.tokens)
    for name, values in {
        "context": world.context,
        "first_index": world.index,
        "target_start": world.target_end,
        "draft_start": world.draft_end,
        "sampled": world.live,
    }.items():
        assert np.array_equal(getattr(state, name)[:size], values), name
    assert np.array_equal(state.ended[:size].astype(bool), np.array(world.rounds.sampled) & ~world.live)
    assert same_pools(world.part, world.other)


def same_pools(left: Part, right: Part) -> bool:
    if not torch.equal(left.groups[0].store.features, right.groups[0].store.features):
        return False
    return all(
        torch.equal(pool, other)
        for one, two in zip(left.groups, right.groups, strict=True)
        for layer in range(2)
        for pool, other in zip(one.store.pools(layer), two.store.pools(layer), strict=True)
    )


@needs_library
@settings(max_examples=250, deadline=None)
@given(several())
def test_rounds_end_alike(rounds: Rounds) -> None:
    check(rounds)


@needs_library
@settings(max_examples=100, deadline=None)
@given(several())
def test_rounds_of_one_call_end_alike(rounds: Rounds) -> None:
    check(rounds, at_once=True)


RICH = Rounds(
    contexts=[5, 9, 2, 7],
    sampled=[True, True, False, True],
    drafted=[True, False, True, True],
    stop_ids=[[], [], [], []],
    count=2,
    width=9,
    chain=False,
    odd=0.0,
    dtype=torch.float32,
    layouts=[(4, None), (3, 5)],
    seed=0,
)


@needs_library
@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_what_a_last_round_accepts_is_moved(seed: int, at_once: bool) -> None:
    """Though every request has ended with it."""
    ending = replace(RICH, contexts=[5], sampled=[True], drafted=[True], stop_ids=[list(range(VOCAB))], seed=seed)
    check(ending, at_once=at_once)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("threads", [1, 3])
def test_cells_move_as_the_store_moves_them(dtype: torch.dtype, threads: int) -> None:
    sizes = {"dtype": dtype, "kv_heads": 3, "head_dim": 5, "layers": 2, "feature_size": 7}
    mine, other = (make_part(np.random.default_rng(1), [(4, None), (7, 5)], **sizes) for _ in range(2))
    random, moves = np.random.default_rng(2), []
    for group in other.groups:
        cells = random.permutation(len(group.store.pools(0)[0]) * group.page_size)[:40].astype(np.int64)
        moves.append(cells.reshape(20, 2).copy())
        group.store.move(*torch.from_numpy(moves[-1]).T)
    pools, count = pools_of(mine.layers, moves), np.array([20])
    assert not same_pools(mine, other)
    with on_threads(threads):
        run([(Code.MOVE_CELLS, MoveCells(len(pools), ctypes.addressof(pools), address(count)))])
    assert same_pools(mine, other)


def first_pool(world: World) -> Cells:
    """Of the op that moves cells, the last of a round."""
    return Cells.from_address(world.program.structure(2, MoveCells).pools)


PLANTS: dict[str, Plant] = {
    "requests": lambda world: setattr(world.accept, "requests", world.size - 1),
    "length": lambda world: setattr(world.accept, "length", world.rounds.width - 1),
    "width": lambda world: setattr(world.builder.draft.structure, "width", world.rounds.width - 1),
    "tokens_stride": lambda world: setattr(world.accept, "tokens_stride", MAX_LEN - 1),
    "parents": lambda world: setattr(world.builder.draft.structure, "parents", None),
    "seats": lambda world: setattr(world.accept, "seats", world.accept.seats + 4),
    "samples": lambda world: setattr(world.accept, "samples", world.accept.samples + 8),
    "depth": lambda world: setattr(world.accept, "depth", world.accept.depth + 4),
    "first_index": lambda world: setattr(world.accept, "first_index", world.accept.first_index + 8),
    "draft_start": lambda world: setattr(world.accept, "draft_start", None),
    "target_start": lambda world: setattr(world.accept, "target_start", world.accept.target_start + 4),
    "num_moves": lambda world: setattr(world.accept, "num_moves", None),
    "stop ids": lambda world: world.builder.state.stops.fill([list(range(VOCAB))] * world.size),
    "sampled": lambda world: world.builder.state.sampled.__setitem__(2, 1),
    "kv_heads": lambda world: setattr(first_pool(world), "kv_heads", 1),
    "cell_bytes": lambda world: setattr(first_pool(world), "cell_bytes", 8),
    "page_size": lambda world: setattr(first_pool(world), "page_size", 3),
}


@needs_library
@pytest.mark.parametrize("name", PLANTS)
def test_a_wrong_number_shows(name: str) -> None:
    check(RICH)
    with pytest.raises(AssertionError):
        check(RICH, PLANTS[name])
