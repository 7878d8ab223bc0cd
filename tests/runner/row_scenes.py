"""Draws stages of a step: requests, drafts and the rows that are fed; lays them out in numpy and natively."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from paceline.kernels.native.program import Program
from paceline.kernels.native.step_structures import PrepareRows
from paceline.kernels.native.structures import GatherArgs
from paceline.runner.native.graph_builder import NativeBuilder
from paceline.runner.native.prepared_rows import PreparedRows
from paceline.runner.rows import MaskNodes, Rows, RowSpec, RowState, place
from tests.runner.steps import (
    MAX_LEN,
    MOST_NODES,
    draw_drafts,
    load,
    load_drafts,
    make_part,
    make_seats,
    record,
    some_seats,
)

Plant = Callable[[PrepareRows, PreparedRows], None]
Describe = Callable[[NativeBuilder, PreparedRows], None]
MASK = 7777
SHIFT = 1000
"""Of the numbers that rows of angles have, less than positions."""


@dataclass(frozen=True)
class One:
    """A request."""

    context: int
    missing: int
    """Known tokens that are not cached."""
    index: int
    sampled: bool
    ended: bool
    nodes: int
    limit: int

    def known(self, spec: RowSpec) -> int:
        """How many known tokens a stage feeds."""
        return (min(self.missing, 1) if spec.last else self.missing) if spec.known else 0

    def nodes_of(self, spec: RowSpec, limit: int) -> list[int]:
        """The nodes that a stage feeds."""
        nodes = range(spec.first_node, spec.first_node + spec.num_nodes)
        if spec.masks is not None:
            return [node for node in nodes if limit > 0 and node + spec.masks.first_output < limit]
        return [node for node in nodes if node < limit]


@dataclass(frozen=True)
class Scene:
    requests: list[One]
    spec: RowSpec
    layouts: list[tuple[int, int | None]]
    width: int
    spare: int
    """Nodes that a graph has room for beyond those."""
    chain: bool
    trees: bool
    """The graph takes trees."""
    verifies: bool
    seed: int


def masks(*, known: bool) -> st.SearchStrategy[MaskNodes]:
    first = st.just(1) if known else st.integers(-1, 2)
    return st.builds(MaskNodes, st.just(MASK), first, repeats_last=st.booleans(), sees_all=st.booleans())


@st.composite
def scenes(draw: Any) -> Scene:
    width = draw(st.sampled_from([0, 1, 2, 5, 63, 64, 65, MOST_NODES]))
    chain = draw(st.booleans())
    known = draw(st.booleans())
    first = 0 if known else draw(st.integers(0, width))
    counts = st.sampled_from([0, width]) | st.integers(0, width)

    @st.composite
    def ones(draw: Any) -> One:
        context, nodes = draw(st.integers(1, MAX_LEN)), draw(counts)
        flags = draw(st.sampled_from([(True, False)] * 3 + [(True, True), (False, False), (False, True)]))
        missing = draw(st.integers(0, min(context, 5)))
        return One(context, missing, draw(st.integers(0, 9)), *flags, nodes, draw(st.integers(0, nodes)))

    spec = RowSpec(
        known,
        first,
        draw(st.integers(0, width - first)),
        draw(st.sampled_from([0, 0, 1, -1, 7])),
        last=known and draw(st.sampled_from([False, False, True])),
        first_slot=draw(st.sampled_from([0, 0, 1, 3])),
        masks=draw(st.none() | masks(known=known)) if not first else None,
    )
    return Scene(
        requests=draw(st.lists(ones(), min_size=1, max_size=8)),
        spec=spec,
        layouts=draw(
            st.lists(st.tuples(st.integers(1, 16), st.none() | st.integers(1, MAX_LEN)), min_size=1, max_size=3)
        ),
        width=width,
        spare=draw(st.sampled_from([0, 0, MOST_NODES - width])),
        chain=chain,
        trees=not chain or draw(st.booleans()),
        # Stages that draft may be the target's too.
        verifies=draw(st.booleans()) and spec.known and not spec.last and spec.masks is None,
        seed=draw(st.integers(0, 99)),
    )


class World:
    """A scene with tokens, pages and drafts, and its rows as each of the three lays them out."""

    def __init__(self, scene: Scene) -> None:
        random = np.random.default_rng(scene.seed)
        self.scene, self.requests = scene, scene.requests
        self.part, self.seats = make_part(random, scene.layouts, feature_size=3), make_seats(random)
        self.other = make_part(random, [(6, None)], feature_size=20)
        """Another model, in whose cells something lies for each slot."""
        self.numbers = some_seats(random, len(scene.requests))
        self.drafts = draw_drafts(random, [one.nodes for one in scene.requests], scene.width, chain=scene.chain)
        self.limits = [one.nodes if scene.verifies else one.limit for one in scene.requests]

    def array(self, values: Any, dtype: Any = np.int32) -> np.ndarray:
        return np.array(list(values), dtype=dtype)

    def placed(self) -> Rows:
        """An ended request has nothing to feed."""
        ones = self.requests
        state = RowState(
            seats=self.numbers,
            context=self.array(one.context for one in ones),
            start=self.array(one.context - one.missing * (not one.ended) for one in ones),
            output_index=self.array((one.index for one in ones), np.int64),
            sampled=self.array((one.sampled for one in ones), bool),
            limit=self.array(limit * (not one.ended) for one, limit in zip(ones, self.limits, strict=True)),
        )
        return place(self.scene.spec, state, self.drafts, self.seats, self.part.groups)

    def native(self, plant: Plant | None = None, describe: Describe | None = None) -> Native:
        """``describe``: what else the ops of the rows are."""
        scene, ones = self.scene, self.requests
        builder = record(self.part, self.seats, nodes=scene.width + scene.spare, trees=scene.trees)
        if not scene.verifies:
            builder.target = make_part(np.random.default_rng(0), scene.layouts)
        starts = [one.context - one.missing for one in ones]
        rows = builder.place(self.part, scene.spec)
        rows.cells_before(builder.side(self.other).pages, 0)
        rows.mask_rows()
        if describe is not None:
            describe(builder, rows)
        others = [one.context for one in ones]
        load(
            builder,
            self.numbers,
            context=others,
            first_index=[one.index for one in ones],
            target_start=starts if scene.verifies else others,
            draft_start=others if scene.verifies else starts,
            limit=self.limits if scene.spec.masks is None else [0] * len(ones),
            depth=self.limits if scene.spec.masks is not None else [0] * len(ones),
            sampled=[one.sampled or not scene.verifies for one in ones],
            drafts=[one.sampled or scene.verifies for one in ones],
            ended=[one.ended for one in ones],
        )
        load_drafts(builder, self.drafts)
        return Native(builder, rows, len(ones), plant)


class Native:
    """What the op wrote, cut to the rows and samples that there are."""

    def __init__(self, builder: NativeBuilder, rows: PreparedRows, count: int, plant: Plant | None) -> None:
        recorder, self.rows = builder._recorder, rows
        made = []
        for name, most in ((rows.row_count, rows.num_rows), (rows.sample_count, rows.num_samples)):
            table, out = torch.ones(most, 1), torch.zeros(most, 1)
            made.append((len(recorder._steps), out))
            recorder.gather(table, out, count=name)
        program: Program = builder.finish()
        rows.set_requests(count)
        rows.plan(MAX_LEN + MOST_NODES)
        rows.angle_base[:count] = np.arange(count) * SHIFT
        if plant is not None:
            plant(program.structure(rows._number, PrepareRows), rows)
        program.replay(rows.counts)
        self.fields = [program.structure(number, GatherArgs).rows for number, _ in made]
        self.gathered = [int(out.sum()) for _, out in made]
        self.row_start, self.sample_start = rows.row_start[: count + 1], rows.sample_start[: count + 1]
        self.tree_bits = rows.tree_bits if builder.draft.words else np.zeros((rows.num_rows, 0), dtype=np.int64)
