"""Native ops between the passes of a drafter do what numpy does: chains grow, trees grow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from paceline.core.step import DraftTrees
from paceline.kernels.native.region import run
from paceline.kernels.native.step_structures import GrowChain, GrowTree
from paceline.kernels.native.structures import Code
from paceline.runner.native.trees import TreePruning
from paceline.runner.rows import RowSpec
from paceline.sampling import NAN
from tests.runner.growth import Growing, Growth, growths
from tests.runner.steps import VOCAB
from tests.support.native import needs_library


def check_chains(growth: Growth, plant: Callable[[GrowChain], None] | None = None) -> None:
    """A row that cannot be sampled ends a chain; so does a stop id behind itself, and a request's own depth."""
    both = Growing(growth, nodes=growth.levels, trees=False)
    specs = [
        RowSpec(known=node == 0, first_node=max(0, node - 1), num_nodes=int(node > 0)) for node in range(growth.levels)
    ]
    for spec in specs:
        both.native.place(both.part, spec)
        both.native.extend(both.native.draft.tokens)
    replay, eager, draft = both.replayer(plant, GrowChain), both.eager, both.native.draft
    tokens = both.random.integers(VOCAB, size=(both.count, growth.levels))
    odd = both.random.random(tokens.shape) < growth.odd
    tokens[odd] = both.random.choice([-1, -2], size=odd.sum())
    draft.tokens[: both.count] = tokens
    broken = np.zeros(both.count, dtype=bool)
    for node, spec in enumerate(specs):
        rows = eager.place(both.part, spec)
        eager.forward(rows)
        sampled = tokens[rows.sampled, node]
        eager.extend(sampled)
        replay(2 * (node + 1))
        broken[rows.sampled[sampled == NAN]] = True
        found = eager.drafts()
        assert np.array_equal(draft.counts[: both.count], np.maximum(found.counts, 0))
        assert np.array_equal(both.state("limit"), eager._limit)
        assert np.array_equal(both.state("growing").astype(bool), eager._growing)
        assert np.array_equal(both.state("broken").astype(bool), broken)
        assert (found.counts[found.counts < 0] == -1).all()
        assert set(np.flatnonzero(found.counts < 0)) <= set(np.flatnonzero(broken))
        for number, count in enumerate(found.counts.tolist()):
            assert draft.tokens[number, : max(count, 0)].tolist() == found.tokens[number, : max(count, 0)].tolist()
        check_stage(both, node, rows)
    # The last node of a draft is not fed, and what was fed before a row that gave NaN stands.
    kept = np.maximum(draft.counts[: both.count] - 1, 0)
    assert np.array_equal(eager.fed_end, both.start.context + kept)


def check_stage(both: Growing, stage: int, rows: Any) -> None:
    """Both have fed and sampled the same rows."""
    native = both.native.stages[stage]
    T, R = (0, 0) if rows.rows is None else (len(rows.rows), len(rows.rows.samples))
    assert (native.row_start[both.count], native.sample_start[both.count]) == (T, R)
    if rows.rows is not None:
        batch, samples = rows.rows.batch, rows.rows.samples
        assert np.array_equal(native.token_ids[:T], batch.token_ids)
        assert np.array_equal(native.positions[:T], batch.positions)
        assert np.array_equal(native.cells[0][:T], batch.cells[0])
        assert np.array_equal(native.sample_seats[:R], samples.seats)
        assert np.array_equal(native.output_index[:R], samples.output_index)


def level_sizes(growth: Growth) -> list[int]:
    """Of a level's parents each has no more children than there are tokens."""
    sizes = [1]
    for _ in range(growth.levels):
        sizes.append(min(growth.width, sizes[-1] * min(growth.width, growth.vocab)))
    return sizes[1:]


def inherited(both: Growing, level: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the level before, and where each node of this level will have that of its parent."""
    before, rows = both.native.stages[level - 1], both.native.stages[level]
    x = torch.from_numpy(both.random.standard_normal((before.num_rows, 18)).astype(np.float32))
    return x, both.native.inherit(x, before, rows)


def check_trees(growth: Growth, plant: Callable[[GrowTree], None] | None = None) -> None:
    """The likeliest paths, of equals the first; a tree whose rows have a NaN grows no further."""
    sizes = level_sizes(growth)
    both = Growing(growth, nodes=sum(sizes), trees=True)
    eager, native, tables, parents, stops = both.eager, both.native, [], [], []
    specs = [
        RowSpec(
            known=level == 0, first_node=sum(sizes[: max(0, level - 1)]), num_nodes=sizes[level - 1] if level else 0
        )
        for level in range(growth.levels)
    ]
    for level, spec in enumerate(specs):
        rows = native.place(both.part, spec)
        parents.append(inherited(both, level) if level else None)
        tables.append(logits_of(both, rows.num_samples))
        native.extend_tree(tables[-1], rows, growth.width)
        stops.append(len(native._recorder._steps))
    before = None
    replay, draft, count = both.replayer(plant, GrowTree), native.draft, both.count
    broken, nodes = np.zeros(count, dtype=bool), np.zeros(count, dtype=np.int32)
    for level, spec in enumerate(specs):
        rows = eager.place(both.part, spec)
        eager.forward(rows)
        eager.extend_tree(tables[level][: len(rows.sampled)], rows, growth.width)
        replay(stops[level])
        if parents[level] is not None and rows.rows is not None:
            x, found = parents[level]
            assert torch.equal(found[: len(rows.rows)], eager.inherit(x, before, rows))
        before = rows
        broken |= eager._counts < 0
        nodes = np.where(broken, nodes, eager._counts)
        assert np.array_equal(both.state("broken").astype(bool), broken)
        assert np.array_equal(draft.counts[:count], nodes)
        assert np.array_equal(both.state("limit"), eager._limit)
        check_stage(both, level, rows)
        check_grown(both, nodes)


def check_shared(growth: Growth) -> None:
    """Heads that look at a request's last known token alone; then each tree is cut down to its likeliest nodes."""
    sizes = level_sizes(growth)
    both = Growing(growth, nodes=sum(sizes), trees=True)
    eager, native, count = both.eager, both.native, both.count
    drafted, most = np.flatnonzero(both.start.depth > 0), int(both.random.integers(1, sum(sizes) + 1))
    tables = [logits_of(both, count) for _ in range(growth.levels)]
    for table in tables:
        rows = native.place(None, RowSpec(last=True))
        logits = torch.zeros(rows.num_samples, growth.vocab)
        logits[: len(drafted)] = table[drafted]
        native.extend_tree(logits, rows, growth.width, shared=True)
    replay, grown = both.replayer(None, GrowTree), len(native._recorder._steps)
    replay(grown)
    for table in tables:
        rows = eager.place(None, RowSpec(last=True))
        eager.extend_tree(table[rows.sampled], rows, growth.width, shared=True)
    broken = eager._counts < 0
    assert np.array_equal(both.state("broken").astype(bool), broken)
    assert np.array_equal(native.draft.counts[:count][~broken], eager._counts[~broken])
    if eager._trees is not None:
        check_grown(both, np.maximum(eager._counts, 0))
        prune = TreePruning(native.draft, most)
        prune.structure.requests = count
        run([(Code.PRUNE_TREE, prune.structure)])
        eager.prune(most)
        assert np.array_equal(native.draft.counts[:count][~broken], eager._counts[~broken])
        assert eager._counts.max() <= most
        check_grown(both, np.maximum(eager._counts, 0))


def check_grown(both: Growing, nodes: np.ndarray) -> None:
    trees, draft = both.eager._trees, both.native.draft
    found = DraftTrees(trees.tokens, trees.parents.copy(), nodes)
    wanted = {"tokens": found.tokens, "parents": found.parents, "depths": found.depths, "scores": trees._scores}
    bits = DraftTrees(found.tokens, found.parents, nodes).ancestor_bits
    for number, count in enumerate(nodes.tolist()):
        for name, values in wanted.items():
            assert np.array_equal(getattr(draft, name)[number, :count], values[number, :count]), name
        assert np.array_equal(draft.bits[number, :count], bits[number, :count])


def logits_of(both: Growing, count: int) -> torch.Tensor:
    """Rows with many equals, some of them with -inf, NaN or infinity."""
    growth, random = both.growth, both.random
    logits = random.integers(3, size=(count, growth.vocab)).astype(np.float32)
    for value, share in ((-np.inf, 2 * growth.odd), (np.nan, growth.odd / 4), (np.inf, growth.odd / 4)):
        rows = np.flatnonzero(random.random(count) < share)
        logits[rows, random.integers(growth.vocab, size=len(rows))] = value
    return torch.from_numpy(logits)


@needs_library
@settings(max_examples=150, deadline=None)
@given(growths())
def test_chains_grow_alike(growth: Growth) -> None:
    check_chains(growth)


@needs_library
@settings(max_examples=150, deadline=None)
@given(growths())
def test_trees_of_shared_rows_grow_and_are_pruned_alike(growth: Growth) -> None:
    check_shared(growth)


@needs_library
@settings(max_examples=150, deadline=None)
@given(growths())
def test_trees_grow_alike(growth: Growth) -> None:
    check_trees(growth)


RICH = Growth(
    depths=[3, 1, 3, 2, 3],
    stop_ids=[[], [0, 1], [2, 3], [], [1]],
    levels=3,
    width=3,
    vocab=9,
    odd=0.4,
    seed=3,
)
CHAIN_PLANTS: dict[str, Callable[[GrowChain], None]] = {
    "node": lambda struct: setattr(struct, "node", 2),
    "requests": lambda struct: setattr(struct, "requests", 2),
    "depth": lambda struct: setattr(struct, "depth", struct.depth + 4),
    "stop ids": lambda struct: setattr(struct.stops, "start", struct.stops.start + 8),
    "growing": lambda struct: setattr(struct, "growing", struct.growing + 1),
    "broken": lambda struct: setattr(struct, "broken", struct.broken + 1),
    "limit": lambda struct: setattr(struct, "limit", struct.limit + 4),
}
TREE_PLANTS: dict[str, Callable[[GrowTree], None]] = {
    "level": lambda struct: setattr(struct, "level", 0),
    "requests": lambda struct: setattr(struct, "requests", 2),
    "width": lambda struct: setattr(struct, "width", 2),
    "most": lambda struct: setattr(struct, "most", 2),
    "depth": lambda struct: setattr(struct, "depth", struct.depth + 4),
    "sample_start": lambda struct: setattr(struct, "sample_start", struct.sample_start + 4),
    "top_tokens": lambda struct: setattr(struct, "top_tokens", struct.top_tokens + 4),
    "top_logits": lambda struct: setattr(struct, "top_logits", struct.top_logits + 4),
    "log_sums": lambda struct: setattr(struct, "log_sums", struct.log_sums + 8),
    "limit": lambda struct: setattr(struct, "limit", struct.limit + 4),
}


@needs_library
@pytest.mark.parametrize("name", CHAIN_PLANTS)
def test_a_wrong_number_of_a_chain_shows(name: str) -> None:
    check_chains(RICH)
    with pytest.raises(AssertionError):
        check_chains(RICH, CHAIN_PLANTS[name])


@needs_library
@pytest.mark.parametrize("name", TREE_PLANTS)
def test_a_wrong_number_of_a_tree_shows(name: str) -> None:
    check_trees(RICH)
    with pytest.raises(AssertionError):
        check_trees(RICH, TREE_PLANTS[name])
