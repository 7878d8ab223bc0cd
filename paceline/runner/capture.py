"""The gate between the two ways to compute a step, and the graphs that have been recorded.

A step is captured: recorded once as a round of ops and replayed as one call; or else it is computed pass by pass.
Nobody else asks which.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from paceline.core.batch import Int32, SampleRows
from paceline.core.seats import Seats
from paceline.core.step import DraftTrees, StepPlan
from paceline.runner.executor import (
    GraphBuilder,
    GraphResult,
    GraphSizes,
    GraphStart,
    RoundBuilder,
    StepGraph,
    power_of_two,
)
from paceline.runner.part import GraphModel
from paceline.runner.rows import RowSpec, sample_rows
from paceline.sampling import Pipeline

MOST_KNOWN, MOST_ROWS = 256, 1024
"""Known tokens, and rows with draft nodes, of a pass. The buffers of a graph are its own, and a longer pass over a
prompt gains nothing by being part of one."""
MOST_GRAPHS = 24
LEAST_REQUESTS, LEAST_ROWS = 4, 16


@dataclass(frozen=True, slots=True)
class GraphDraft:
    """A drafter's part of the rounds of a step."""

    name: str
    describe: Callable[[GraphBuilder, int], None]
    """(builder, depth): its stages, for drafts of that depth"""
    runner: GraphModel | None
    """Whose passes its stages are; None of heads without layers."""
    makes_trees: bool
    start: Int32
    """[B] the first known token that its cache lacks."""
    depth: Int32
    """[B] how deep each draft may be."""
    num_nodes: int
    """Most nodes of a draft as deep as the deepest."""


@dataclass(frozen=True, slots=True)
class KeptGraph:
    """A recorded round."""

    key: tuple[Any, ...]
    sizes: GraphSizes
    graph: StepGraph


@dataclass(frozen=True, slots=True)
class CapturedStep:
    """A step that can be one call."""

    plan: StepPlan
    draft: GraphDraft | None
    drafts: DraftTrees | None
    rows: SampleRows
    """The target's rows that are sampled first."""
    at_once: bool
    """All rows are known before the call."""


class StepGraphs:
    """Records rounds and keeps them, by what they draft and how much they have room for."""

    def __init__(
        self, target: GraphModel, seats: Seats, pipeline: Pipeline, *, enforce_eager: bool, num_best: int = 0
    ) -> None:
        """``num_best``: the likeliest tokens of each verified row that the host is told."""
        self._target, self._seats, self._pipeline = target, seats, pipeline
        self.enforce_eager, self._num_best = enforce_eager, num_best
        self._graphs: OrderedDict[tuple[Any, ...], KeptGraph] = OrderedDict()
        self.num_captured = 0

    def obstacle(self, plan: StepPlan, draft: GraphDraft | None, drafts: DraftTrees | None = None) -> str | None:
        """Why a step must be computed pass by pass; None if it can be one call."""
        found = self.admit(plan, draft, drafts)
        return found if isinstance(found, str) else None

    def admit(self, plan: StepPlan, draft: GraphDraft | None, drafts: DraftTrees | None = None) -> CapturedStep | str:
        """The gate: a step that ``replay`` computes as one call, or why it must be computed pass by pass.

        ``draft`` drafts in the rounds themselves; ``drafts`` are there already.
        """
        if self.enforce_eager:
            return "enforce_eager"
        blocked = self._target.executor.obstacle
        kept = self._target.kept
        if not blocked and kept is not None and not self._target.executor.takes(kept.fuse):
            blocked = f"{type(kept.fuse).__name__} has no native form"
        if draft is not None and draft.runner is not None:
            blocked = blocked or draft.runner.executor.obstacle
        if blocked:
            return blocked
        nodes = drafts.width if drafts is not None else draft.num_nodes if draft is not None else 0
        known = int(plan.num_known.sum())
        lacking = 0 if draft is None else int((plan.end - draft.start).sum())
        if max(known, lacking) > MOST_KNOWN or known + len(plan) * nodes > MOST_ROWS:
            return "a pass of many rows"
        return self._admit_requests(plan, draft, drafts)

    def _admit_requests(
        self, plan: StepPlan, draft: GraphDraft | None, drafts: DraftTrees | None
    ) -> CapturedStep | str:
        seats, chosen = self._seats, plan.seats
        if seats.keeps_logprobs[chosen].any():
            return "logprobs"
        if (seats.needs_prompt_rows[chosen] & (plan.start < seats.prompt_len[chosen])).any():
            return "prompt_logprobs or embeddings"
        # What the draft put before a row is only read by controls that edit logits.
        rows = sample_rows(plan, drafts if self._pipeline.edits(chosen) else None, seats)
        if not len(rows):
            return "nothing is sampled"
        at_once = draft is None and plan.num_rounds == 1
        if not self._pipeline.can_plan(rows, at_once=at_once):
            return "controls that look at a text's history"
        return CapturedStep(plan, draft, drafts, rows, at_once)

    def replay(self, step: CapturedStep, num_nodes: int = 0) -> GraphResult:
        """Computes a step as one call.

        ``num_nodes``: the most nodes that drafts from elsewhere may have in this or another step.

        Raises:
            Exception: whatever an op raises.
        """
        sampling = self._pipeline.native(step.rows, at_once=step.at_once)
        assert sampling is not None
        taken = self._take(step, num_nodes, sampling.call)
        result = taken.graph.replay(self._start(step, sampling.edits), step.plan.num_rounds)
        self._give_back(taken)
        return result

    def forget(self) -> None:
        """Keeps nothing of steps before: one was cut short while it was planned."""
        self._graphs.clear()

    def _start(self, step: CapturedStep, edits: Any) -> GraphStart:
        seats, plan, draft, drafts = self._seats, step.plan, step.draft, step.drafts
        known = seats.num_tokens[plan.seats]
        depth = draft.depth if draft is not None else np.zeros(len(plan), dtype=np.int32)
        return GraphStart(
            seats=plan.seats,
            context=plan.end,
            output_index=seats.num_output(plan.seats),
            target_start=plan.start,
            draft_start=plan.end if draft is None else draft.start,
            depth=depth if drafts is None else drafts.deepest,
            sampled=plan.end == known,
            requests=plan.requests,
            drafts=drafts,
            edits=edits,
        )

    def _take(self, step: CapturedStep, num_nodes: int, call: Any) -> KeptGraph:
        """A graph for a step, which is kept no more: one whose call is cut short may be half planned."""
        plan, draft, drafts = step.plan, step.draft, step.drafts
        depth = 0 if draft is None else int(draft.depth.max(initial=0))
        trees = not drafts.is_chain if drafts is not None else draft is not None and draft.makes_trees
        sizes = self._sizes(plan, draft, depth, 0 if draft is None else draft.num_nodes, trees=trees)
        if drafts is not None:
            nodes = max(drafts.width, num_nodes)
            sizes = replace(sizes, nodes=nodes, length=nodes)
        key = (draft.name if draft else None, depth, sizes.nodes, trees, sizes.requests, id(call))
        had = self._graphs.pop(key, None)
        if had is not None and had.sizes.holds(sizes):
            return had
        sizes = sizes if had is None else sizes.joined(had.sizes)
        self.num_captured += 1
        return KeptGraph(key, sizes, self._capture(draft, depth, sizes, call))

    def _give_back(self, taken: KeptGraph) -> None:
        self._graphs[taken.key] = taken
        while len(self._graphs) > MOST_GRAPHS:
            self._graphs.popitem(last=False)

    @staticmethod
    def _sizes(plan: StepPlan, draft: GraphDraft | None, depth: int, nodes: int, *, trees: bool) -> GraphSizes:
        known, requests = int(plan.num_known.sum()), power_of_two(max(len(plan), LEAST_REQUESTS))
        if draft is not None:
            known = max(known, int((plan.end - draft.start).sum()))
        rows = max(LEAST_ROWS, power_of_two(known), requests * (depth + 1))
        return GraphSizes(requests, nodes, depth, power_of_two(plan.num_rounds), rows, trees)

    def _capture(self, draft: GraphDraft | None, depth: int, sizes: GraphSizes, call: Any) -> StepGraph:
        target, kept = self._target, self._target.kept

        def describe(graph: RoundBuilder) -> None:
            if draft is not None:
                draft.describe(graph, depth)
            rows = graph.place(target, RowSpec(num_nodes=sizes.nodes))
            found = graph.forward(rows, taps=() if kept is None else kept.taps)
            if kept is not None:
                graph.keep(graph.apply(kept.fuse, rows, kept.source(found.hidden, found.features)), rows)
            if self._num_best:
                graph.best(found.logits, rows, self._num_best)
            graph.accept(graph.sample(found.logits, rows))

        with torch.inference_mode():
            return self._target.executor.capture(
                describe, target=self._target, seats=self._seats, call=call, sizes=sizes
            )
