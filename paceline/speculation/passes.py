"""Has a proposer's stages computed pass by pass, and puts drafts of several sources side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from paceline.core.batch import Int32
from paceline.core.step import DraftTrees, StepPlan
from paceline.runner import DraftStart, EagerBuilder
from paceline.speculation.base import DraftsInGraph, ProposerTools
from paceline.speculation.catch_up import DraftCache

Bool = npt.NDArray[np.bool_]


def draft_in_passes(
    proposer: DraftsInGraph,
    plan: StepPlan,
    active: Bool,
    *,
    cache: DraftCache,
    tools: ProposerTools,
    nodes: Sequence[int],
) -> DraftTrees:
    """Drafts for the requests that are ``active`` [B]; ``nodes`` by depth. The cache takes note of what was fed."""
    depth: Int32 = np.where(active, plan.draft_depth, 0).astype(np.int32)
    deepest = int(depth.max(initial=0))
    start = DraftStart(
        seats=plan.seats,
        context=plan.end,
        start=cache.start(plan, active),
        output_index=tools.seats.num_output(plan.seats),
        depth=depth,
        stop_ids=[request.stop_ids for request in plan.requests],
    )
    builder = EagerBuilder(
        start,
        seats=tools.seats,
        pipeline=tools.pipeline,
        target=tools.target,
        num_nodes=nodes[deepest],
        max_rows=tools.max_rows,
        needs_probs=tools.needs_probs,
    )
    proposer.draft(builder, deepest)
    cache.note(plan, active, builder.fed_end)
    return builder.drafts()


def joined(drafts: DraftTrees, others: DraftTrees) -> DraftTrees:
    """Of each request the one draft that it has; both are certain."""
    width = max(drafts.width, others.width)
    tokens, parents = (np.zeros((len(drafts.counts), width), dtype=np.int32) for _ in range(2))
    parents[:] = np.arange(-1, width - 1)
    tokens[:, : drafts.width], parents[:, : drafts.width] = drafts.tokens, drafts.parents
    taken = others.counts > 0
    tokens[taken, : others.width], parents[taken, : others.width] = others.tokens[taken], others.parents[taken]
    return DraftTrees(tokens, parents, np.where(taken, others.counts, drafts.counts).astype(np.int32))
