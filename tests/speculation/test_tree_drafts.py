"""What a drawn tree hands over is what it was drawn from, and no two draws of a round share a number."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from paceline.core.step import DraftTrees
from paceline.kernels.philox import Domain
from paceline.speculation.checks import drawn
from paceline.speculation.verify import TraversalVerifier, TreeVerifier
from paceline.speculation.verify.tree_ratio import TreeRatioVerifier
from paceline.speculation.verify.trees import Decision, Trees
from tests.speculation import tree_plants
from tests.support.seating import Room, make_request, many_rows, random_logits, rows_of

Plant = Callable[[pytest.MonkeyPatch], None]
PARENTS = [-1, -1, 0, 0, 1, 1, 3]
by_rule = pytest.mark.parametrize("rule", [TreeVerifier, TraversalVerifier])


def siblings_are_drawn_from_what_is_handed_over() -> None:
    room = Room(vocab=50)
    rows = many_rows(room.join(make_request(top_k=3, temperature=0.7)), 2_000)
    logits = random_logits(1, vocab=50, dtype=torch.float32).expand(len(rows), -1)
    tokens, probs = room.pipeline.draft_distinct(logits, rows, 4, np.zeros(len(rows), dtype=np.int64))
    noise = room.pipeline.noise(rows, Domain.DRAFT, torch.float32)[:, None]
    assert (tokens[:, 3] < 0).all()  # three tokens may be drawn
    tokens, probs = torch.as_tensor(tokens[:, :3]), probs[:, :3]
    assert torch.equal(tokens, (probs.log() + noise).argmax(-1))
    assert torch.allclose(probs.sum(-1), torch.ones(1), atol=1e-6)
    for place in range(3):
        before = probs[:, place].gather(-1, tokens[:, :place])
        assert not before.any()
        assert ((probs[:, place] > 0).sum(-1) == 3 - place).all()
    first = room.pipeline.draft(logits, rows)
    assert torch.equal(tokens[:, 0], torch.as_tensor(first[0]))
    assert torch.equal(probs[:, 0], first[1])


def test_siblings_are_drawn_from_what_is_handed_over() -> None:
    siblings_are_drawn_from_what_is_handed_over()


@pytest.mark.parametrize(
    "plant",
    [
        tree_plants.siblings_carry_their_parents_row,
        tree_plants.siblings_come_in_another_order,
        tree_plants.rows_are_not_normalised_anew,
        tree_plants.the_likeliest_tokens_are_said_to_be_drawn,
    ],
)
def test_siblings_from_something_else_are_caught(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        siblings_are_drawn_from_what_is_handed_over()


def tree(parents: list[int], tokens: list[int]) -> DraftTrees:
    arrays = (np.array([part], dtype=np.int32) for part in (tokens, parents))
    return DraftTrees(*arrays, np.array([len(tokens)], dtype=np.int32))


def numbers_of_nodes(rule: type[TreeRatioVerifier]) -> torch.Tensor:
    """f64[N] what each node's acceptance was decided by."""
    seen = []

    class Watched(rule):
        def decide(self, trees: Trees, uniform: torch.Tensor) -> Decision:
            seen.append(uniform)
            return super().decide(trees, uniform)

    room, drafts = Room(vocab=9), tree(PARENTS, [1, 2, 3, 4, 5, 6, 7])
    request = room.join(make_request(temperature=1.0))
    rows = rows_of((request, ()), *((request, [t for t in path if t >= 0]) for path in drafts.paths[0].tolist()))
    start = np.array([0, len(rows)], dtype=np.int32)
    Watched().verify(random_logits(len(rows), vocab=9), rows, drafts, start, room.pipeline)
    return seen[0][0]


@by_rule
def test_each_node_has_a_number_of_its_own(rule: type[TreeRatioVerifier]) -> None:
    assert len(numbers_of_nodes(rule).unique()) == len(PARENTS)


@by_rule
@pytest.mark.parametrize(
    "plant", [tree_plants.nodes_of_a_level_share_their_noise, tree_plants.levels_share_their_noise]
)
def test_numbers_that_nodes_share_are_caught(
    rule: type[TreeRatioVerifier], plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert len(numbers_of_nodes(rule).unique()) < len(PARENTS)


def test_cousins_draw_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one depth with the same scores agree as often as chance has it, and no oftener."""
    room = Room(vocab=4)
    rows = many_rows(room.join(make_request(temperature=1.0)), 4_000)
    logits = torch.zeros(len(rows), 4)

    def agreement() -> float:
        one, other = (
            room.pipeline.draft_distinct(logits, rows, 1, np.full(len(rows), place, dtype=np.int64))[0]
            for place in (0, 1)
        )
        return float((one == other).mean())

    assert abs(agreement() - 0.25) < 0.04
    tree_plants.nodes_of_a_level_share_their_noise(monkeypatch)
    assert agreement() == 1.0


def test_places_count_the_nodes_of_a_level() -> None:
    assert tree(PARENTS, [0] * 7).places.tolist() == [[0, 1, 0, 1, 2, 3, 0]]
    assert tree([-1, 0, 1, -1, 0], [0] * 5).places.tolist() == [[0, 0, 0, 1, 1]]
    assert tree([-1, 0, 1], [0] * 3).places.tolist() == [[0, 0, 0]]


def test_a_tree_is_cut_at_the_first_row_that_is_no_distribution() -> None:
    """By number, so that what is cut hangs on the nodes before; a token that was not drawn from its row drops all."""
    drafts, probs = tree(PARENTS, [1, 2, 0, 1, 2, 0, 1]), torch.full((1, 7, 3), 1 / 3)
    assert drawn(drafts, probs).tolist() == [7]
    for node in range(7):
        broken = probs.clone()
        broken[0, node] = torch.nan
        assert drawn(drafts, broken).tolist() == [node]
    lying = probs.clone()
    lying[0, 3] = torch.tensor([0.5, 0.0, 0.5])
    assert drawn(drafts, lying).tolist() == [0]
