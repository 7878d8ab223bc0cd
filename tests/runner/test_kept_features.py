"""Features of the target are kept in the cells of its rows, and read from the slots before a drafter's rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from paceline.core.batch import Int64
from paceline.kernels.native.region import run
from paceline.kernels.native.structures import Code, ExpandArgs, Matrix, pointer
from paceline.layers.linear import Linear
from paceline.layers.norm import RMSNorm
from paceline.layers.placement import Placement
from paceline.layers.quantized import pack_linear
from paceline.runner.features import feature_group
from paceline.runner.native.graph_builder import NativeBuilder
from paceline.runner.native.lowering import modules
from paceline.runner.native.prepared_rows import PreparedRows
from paceline.runner.native.recorded_pass import columns_of
from paceline.runner.native.recorder import TOKENS, Recorder
from tests.runner.row_scenes import Scene, World, scenes
from tests.runner.steps import Part
from tests.support.native import needs_library, on_threads


def features(part: Part) -> torch.Tensor:
    found = feature_group(part.groups)
    assert found is not None
    return found[1]


def slots_before(world: World) -> tuple[int, Int64]:
    """How many rows there are, and the cells of the known slots before them in the other model."""
    rows = world.placed()
    owner = rows.batch.row_request
    slots = np.maximum(np.minimum(rows.slots, rows.batch.context[owner]) - 1, 0)
    return len(rows), world.other.groups[0].cells(world.numbers[owner], slots)


@needs_library
@settings(max_examples=60, deadline=None)
@given(scenes())
def test_a_drafter_reads_what_lies_before_its_rows(scene: Scene) -> None:
    world, found = World(scene), []

    def describe(builder: NativeBuilder, rows: PreparedRows) -> None:
        builder.target = world.other
        found.append(builder.features(rows))

    world.native(describe=describe)
    count, cells = slots_before(world)
    assert torch.equal(found[0][:count], features(world.other)[torch.from_numpy(cells)])


@needs_library
@settings(max_examples=60, deadline=None)
@given(scenes())
def test_mask_nodes_read_what_stands_for_features(scene: Scene) -> None:
    world, found, stands = World(scene), [], torch.arange(20.0)[None]

    def describe(builder: NativeBuilder, rows: PreparedRows) -> None:
        builder.target = world.other
        found.append(builder.features(rows, stands))

    world.native(describe=describe)
    count, cells = slots_before(world)
    expected, rows = features(world.other)[torch.from_numpy(cells)], world.placed()
    if scene.spec.masks is not None:
        expected[torch.from_numpy(rows.slots >= rows.batch.context[rows.batch.row_request])] = stands
    assert torch.equal(found[0][:count], expected)


@needs_library
@settings(max_examples=60, deadline=None)
@given(scenes())
def test_rows_are_kept_where_they_lie_and_nothing_else_is_touched(scene: Scene) -> None:
    """A request that has ended has no rows."""
    world, written = World(scene), []

    def describe(builder: NativeBuilder, rows: PreparedRows) -> None:
        builder.target = world.part
        written.append(torch.randn(rows.num_rows, 3, generator=torch.Generator().manual_seed(scene.seed)))
        builder.keep(written[0], rows)

    expected = features(world.part).clone()
    cells = torch.from_numpy(world.placed().batch.cells[0])
    world.native(describe=describe)
    expected[cells] = written[0][: len(cells)]
    assert torch.equal(features(world.part), expected)


@needs_library
def test_modules_that_stand_by_themselves() -> None:
    generator = torch.Generator().manual_seed(1)
    linear = Linear(torch.nn.Parameter(torch.randn(9, 20, generator=generator), requires_grad=False))
    linear.packed = pack_linear(linear)
    norm = RMSNorm(20, epsilon=1e-5, on=Placement(torch.float32, torch.device("cpu")))
    norm.weight.copy_(torch.randn(20, generator=generator))
    recorder = Recorder({TOKENS: 7})
    x = torch.randn(7, 20, generator=generator)
    outs = [modules.of(module)(module, recorder, x) for module in (linear, norm)]
    assert modules.of(torch.nn.Identity())(torch.nn.Identity(), recorder, x) is x
    program, several = recorder.finish(), []
    for count in (7, 1):
        program.run({TOKENS: count})
        for out, module in zip(outs, (linear, norm), strict=True):
            torch.testing.assert_close(out[:count], module(x[:count]), atol=1e-4, rtol=1e-4)
        several.append([out[:1].clone() for out in outs])
    assert all(map(torch.equal, *several))
    with pytest.raises(TypeError, match="Tanh"):
        modules.of(torch.nn.Tanh())


@needs_library
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_columns_are_expanded(rows: int, threads: int) -> None:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randperm(301, generator=generator)[:77]
    x, out = torch.randn(rows, 77, generator=generator), torch.zeros(rows + 1, 301)
    columns = columns_of(tokens, 301)
    with on_threads(threads):
        run([(Code.EXPAND, ExpandArgs(Matrix.of(x), Matrix.of(out), pointer(columns), rows, 301))])
    expected = torch.full((rows, 301), -torch.inf).index_copy_(1, tokens, x)
    assert torch.equal(out[:rows], expected)
    assert not out[rows].any()


def test_an_output_matrix_has_each_token_once() -> None:
    with pytest.raises(IndexError, match="301"):
        columns_of(torch.tensor([0, 301]), 301)
    with pytest.raises(ValueError, match="same token"):
        columns_of(torch.tensor([5, 5]), 301)
