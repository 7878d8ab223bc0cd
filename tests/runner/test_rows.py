"""Rows of a stage lie where the rule of rows says: slot by slot in plain Python, in numpy, and as a native op."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from paceline.core.batch import Batch
from paceline.core.step import DraftTrees
from paceline.kernels.native.step_structures import PrepareRows
from paceline.runner.native.prepared_rows import PreparedRows
from paceline.runner.rows import MaskNodes, RowSpec
from tests.runner.row_scenes import MASK, SHIFT, Native, One, Plant, Scene, World, scenes
from tests.support.native import needs_library


def seen(visible: int, words: np.ndarray, context: int) -> frozenset[int]:
    bits = sum(int(np.uint64(word)) << 64 * place for place, word in enumerate(words.view(np.uint64)))
    return frozenset(range(visible)) | {context + node for node in range(bits.bit_length()) if bits >> node & 1}


def check_placed(world: World) -> None:
    """Goes through the slots of each request one by one."""
    rows, spec, drafts = world.placed(), world.scene.spec, world.drafts
    batch, samples, row, sample = rows.batch, rows.samples, 0, 0
    for number, one in enumerate(world.requests):
        seat, context, found = int(world.numbers[number]), one.context, []
        assert (batch.row_start[number], batch.sample_start[number]) == (row, sample)
        if not one.ended:
            found = [(slot, -1) for slot in range(context - one.known(spec), context)]
            found += [(context + node, node) for node in one.nodes_of(spec, world.limits[number])]
        for slot, node in found:
            path = list(range(node + 1)) if spec.masks else path_to(drafts, number, node)
            sees = set(range(slot + 1)) if node < 0 else {*range(context), *(context + one for one in path)}
            position = len(sees) - 1
            if spec.masks and spec.masks.sees_all and node >= 0:
                sees |= {other for other, _ in found}
            assert rows.slots[row] == slot
            assert rows.parents[row] == (path[-2] if len(path) > 1 else -1)
            assert batch.token_ids[row] == token_of(world, number, slot, node)
            assert batch.positions[row] == max(0, position + spec.position_shift)
            assert seen(int(batch.visible[row]), batch.tree_bits[row], context) == sees
            assert (batch.row_request[row], batch.context[number]) == (number, context)
            for group, cells, first in zip(world.part.groups, batch.cells, batch.first_visible, strict=True):
                page, offset = group.page_table[seat, slot // group.page_size], slot % group.page_size
                assert cells[row] == page * group.page_size + offset
                assert (first is None) == (group.window is None and not spec.first_slot)
                least = 0 if group.window is None else position + 1 - group.window
                assert first is None or first[row] == max(min(slot, spec.first_slot), least)
            decides = len(path) if not spec.masks or node < 0 else node + spec.masks.first_output
            if one.sampled and slot >= context - 1 and decides >= 0:
                assert batch.logit_rows[sample] == row
                assert (samples.seats[sample], samples.output_index[sample]) == (seat, one.index + decides)
                before = [] if spec.masks else [drafts.tokens[number, node] for node in path]
                assert samples.path[sample].tolist() == before + [-1] * (samples.path.shape[1] - len(path))
                sample += 1
            row += 1
    assert len(rows) == batch.row_start[-1] == row
    assert len(samples) == len(batch.logit_rows) == batch.sample_start[-1] == sample
    assert batch.longest.tolist() == world.seats.longest[world.numbers].tolist()
    for group, table in zip(world.part.groups, batch.page_table, strict=True):
        assert np.array_equal(table, group.page_table[world.numbers])


def token_of(world: World, number: int, slot: int, node: int) -> int:
    known, masks = world.seats.tokens[int(world.numbers[number])], world.scene.spec.masks
    if node < 0:
        return int(known[slot])
    if masks is None:
        return int(world.drafts.tokens[number, node])
    return int(known[slot - 1]) if masks.repeats_last and node == 0 else masks.token


def path_to(drafts: DraftTrees, number: int, node: int) -> list[int]:
    path: list[int] = []
    while node >= 0:
        path, node = [node, *path], int(drafts.parents[number, node])
    return path


def check_native(world: World, plant: Plant | None = None) -> None:
    expected, native = world.placed(), world.native(plant)
    batch, samples, scene, rows = expected.batch, expected.samples, world.scene, native.rows
    T, R = len(expected), len(samples)
    owner = np.repeat(np.arange(len(world.requests)), np.diff(batch.sample_start))
    assert native.fields == native.gathered == [T, R]
    for name in ("row_start", "sample_start"):
        assert np.array_equal(getattr(native, name), getattr(batch, name)), name
    for name in ("token_ids", "positions"):
        assert np.array_equal(getattr(rows, name)[:T], getattr(batch, name)), name
    assert np.array_equal(rows.angle_rows[:T], batch.positions - batch.row_request * SHIFT)
    masked = (expected.slots >= batch.context[batch.row_request]) & (scene.spec.masks is not None)
    assert np.array_equal(rows.mask_rows()[:T], np.where(masked, np.arange(T), -1))
    check_seen(world, native, batch)
    for number, group in enumerate(world.part.groups):
        assert np.array_equal(rows.cells[number][:T], batch.cells[number])
        first = rows._first_visible[number]
        assert (first is None) == (group.window is None and not scene.spec.first_slot)
        assert first is None or np.array_equal(first[:T], batch.first_visible[number])
    slots = np.maximum(np.minimum(expected.slots, batch.context[batch.row_request]) - 1, 0)
    before = world.other.groups[0].cells(world.numbers[batch.row_request], slots)
    assert np.array_equal(rows._before[:T], before)
    assert np.array_equal(rows.logit_rows[:R], batch.logit_rows)
    assert np.array_equal(rows.sample_seats[:R], samples.seats)
    assert np.array_equal(rows.output_index[:R], samples.output_index)
    if scene.spec.masks is not None:
        width, indices = scene.width + scene.spare, world.array((one.index for one in world.requests), np.int64)
        assert np.array_equal(rows.places[:R], owner * width + samples.output_index - indices[owner])
        return
    # Where a row's token goes: one place of a request per node, behind one for its last known token.
    node = batch.logit_rows - batch.row_start[owner] + scene.spec.first_node
    missing = np.array([one.known(scene.spec) for one in world.requests])[owner]
    width = scene.width + scene.spare + scene.verifies
    assert np.array_equal(rows.places[:R], owner * width + node - missing + 1)


def check_seen(world: World, native: Native, batch: Batch) -> None:
    """Of a graph that takes trees a chain's rows see by bits what others see by their number."""
    T, words, rows = len(batch.token_ids), batch.tree_bits.shape[1], native.rows
    if world.drafts.is_chain != world.scene.trees:
        assert np.array_equal(rows.visible[:T], batch.visible)
        assert np.array_equal(native.tree_bits[:T, :words], batch.tree_bits)
        assert not native.tree_bits[:T, words:].any()
    for row in range(T):
        context = int(batch.context[batch.row_request[row]])
        found = seen(int(rows.visible[row]), native.tree_bits[row], context)
        assert found == seen(int(batch.visible[row]), batch.tree_bits[row], context)


@settings(max_examples=150, deadline=None)
@given(scenes())
def test_rows_are_those_of_going_slot_by_slot(scene: Scene) -> None:
    check_placed(World(scene))


@needs_library
@settings(max_examples=200, deadline=None)
@given(scenes())
def test_the_native_op_lays_out_the_same_rows(scene: Scene) -> None:
    check_native(World(scene))


TREES = Scene(
    requests=[One(9, 3, 4, True, False, 66, 66), One(30, 1, 0, True, False, 5, 5), One(12, 2, 0, True, True, 7, 7)],
    spec=RowSpec(num_nodes=67, position_shift=1),
    layouts=[(4, None), (3, 5)],
    width=67,
    spare=3,
    chain=False,
    trees=True,
    verifies=True,
    seed=1,
)
HIDDEN = replace(TREES, spec=RowSpec(num_nodes=67, first_slot=1))
MASKED = replace(
    TREES, spec=RowSpec(num_nodes=40, position_shift=-1, masks=MaskNodes(MASK, sees_all=True)), verifies=False
)
BLOCK = replace(
    MASKED, spec=RowSpec(known=False, num_nodes=40, masks=MaskNodes(MASK, -1, repeats_last=True, sees_all=True))
)
LATER = replace(TREES, spec=RowSpec(known=False, first_node=2, num_nodes=40), verifies=False)
NUMBERS = {
    "first_node": 1,
    "num_nodes": -2,
    "position_shift": 1,
    "places_stride": 1,
    "tokens_stride": -1,
    "requests": -1,
    "first_slot": 1,
    "last": 1,
    "masks": 1,
    "mask_token": 1,
    "first_output": 1,
    "repeats_last": -1,
    "sees_all": -1,
}
ARRAYS = ("seats", "context", "start", "first_index", "limit", "angle_base")


@pytest.mark.parametrize("name", NUMBERS)
@needs_library
def test_a_wrong_number_in_the_op_shows(name: str) -> None:
    def plant(struct: PrepareRows, rows: PreparedRows) -> None:
        setattr(struct, name, getattr(struct, name) + NUMBERS[name])

    masked = dict.fromkeys(["mask_token", "first_output", "repeats_last", "sees_all"], BLOCK)
    shows(plant, {"first_node": LATER, "first_slot": HIDDEN, **masked}.get(name, TREES))


@needs_library
def test_masks_behind_known_tokens_are_those_of_the_rule() -> None:
    check_placed(World(MASKED))
    check_native(World(MASKED))
    with pytest.raises(ValueError, match="mask nodes begin with node 0"):
        RowSpec(num_nodes=2, masks=MaskNodes(MASK, 0))


@pytest.mark.parametrize("name", ARRAYS)
@needs_library
def test_a_wrong_array_of_the_op_shows(name: str) -> None:
    """That of the requests next to them."""

    def plant(struct: PrepareRows, rows: PreparedRows) -> None:
        size = 8 if name in ("first_index", "angle_base") else 4
        setattr(struct, name, getattr(struct, name) + size)

    shows(plant)


@pytest.mark.parametrize("name", ["sampled", "ended", "start"])
@needs_library
def test_a_missing_array_of_the_op_shows(name: str) -> None:
    """Nobody is sampled, nobody has ended, no known token is fed."""
    nothing = (ctypes.c_uint8 * 8)()

    def plant(struct: PrepareRows, rows: PreparedRows) -> None:
        setattr(struct, name, ctypes.addressof(nothing) if name == "sampled" else None)

    shows(plant)


@pytest.mark.parametrize(("group", "name"), [(0, "page_size"), (0, "page_table_stride"), (1, "window")])
@needs_library
def test_a_wrong_number_of_a_group_shows(group: int, name: str) -> None:
    def plant(struct: PrepareRows, rows: PreparedRows) -> None:
        setattr(rows._structs[group], name, getattr(rows._structs[group], name) - 1)

    shows(plant)


@needs_library
def test_a_wrong_page_of_the_slots_before_shows() -> None:
    def plant(struct: PrepareRows, rows: PreparedRows) -> None:
        rows._before_structs[0].page_size -= 1

    shows(plant)


@pytest.mark.parametrize("name", ["tokens", "depths", "bits"])
@needs_library
def test_a_wrong_number_of_a_draft_shows(name: str) -> None:
    def plant(struct: PrepareRows, rows: PreparedRows) -> None:
        getattr(rows._draft, name)[1, 4] += 1

    shows(plant)


def test_known_tokens_and_nodes_are_one_stretch() -> None:
    with pytest.raises(ValueError, match="first_node 2"):
        RowSpec(first_node=2, num_nodes=1)


def shows(plant: Plant, scene: Scene = TREES) -> None:
    check_native(World(scene))
    with pytest.raises(AssertionError):
        check_native(World(scene), plant)
