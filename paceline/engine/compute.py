"""Computes a step: as one call where the gate is open, else pass by pass. Nothing changes, so it can be repeated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from paceline.core.batch import Batch, Int32, Output, SampleRows, Verdict
from paceline.core.outputs import TokenLogprobs
from paceline.core.request import Request
from paceline.core.seats import Seats
from paceline.core.step import DraftTrees, StepPlan
from paceline.engine.logprobs import prompt_logprobs, token_logprobs
from paceline.runner import (
    CapturedStep,
    GraphDraft,
    GraphResult,
    ModelRunner,
    RowSpec,
    RowState,
    StepGraphs,
    place,
    verify_rows,
)
from paceline.sampling import BANNED, Pipeline, Selector
from paceline.speculation import GuardedProposer, Verifier
from paceline.speculation.verify.base import by_request


class RoundStats(NamedTuple):
    """One round of one request."""

    num_nodes: int
    num_accepted: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class StepResult:
    """A computed step that is not yet committed."""

    plan: StepPlan
    sampled: list[int]
    """The numbers of the requests that reached their last known token."""
    verdict: Verdict
    """Of all rounds together: every token but the last was fed, as an accepted node is."""
    rounds: list[list[RoundStats]]
    """[B]"""
    num_rounds: int = 1
    batch: Batch | None = None
    output: Output | None = None
    """None where nothing was wanted but tokens."""
    logprobs: Mapping[int, list[TokenLogprobs]] | None = None
    """By number of request: one entry per token of the verdict, for requests that need them."""
    prompt_logprobs: tuple[tuple[Request, int, TokenLogprobs], ...] = ()
    moved: bool = False
    """Accepted nodes lie where they belong already."""

    @property
    def drafted(self) -> bool:
        return any(stats.num_nodes for rounds in self.rounds for stats in rounds)


class StepComputation:
    """Computes steps. Of all that lasts it writes only cells of the pool behind what is cached."""

    def __init__(
        self,
        *,
        seats: Seats,
        runner: ModelRunner,
        pipeline: Pipeline,
        verifier: Verifier,
        proposer: GuardedProposer | None,
        selector: Selector,
        graphs: StepGraphs,
    ) -> None:
        self.seats, self.runner, self.pipeline = seats, runner, pipeline
        self.verifier, self.proposer, self.selector, self.graphs = verifier, proposer, selector, graphs
        self.eager_steps = Counter[str]()
        """Steps that were computed pass by pass, by the reason."""
        self._admitted: CapturedStep | None = None
        """The plan that was asked about last."""

    def can_repeat(self, plan: StepPlan) -> bool:
        """Whether the rounds of a plan can follow one another in one call."""
        draft = self._graph_draft(plan)
        if draft is None and plan.draft_depth.any():
            return False
        step = self._admit(plan, draft, None)
        self._admitted = None if isinstance(step, str) else step
        return self._admitted is not None

    def run_eagerly(self, plan: StepPlan) -> StepResult:
        """As ``run``, pass by pass and without drafts."""
        self.eager_steps["a step before failed"] += 1
        return self._computed(plan, DraftTrees.empty(len(plan)))

    def run(self, plan: StepPlan) -> StepResult:
        """Raises whatever the target's part raises; nothing has changed then."""
        step, self._admitted = self._admitted, None
        if step is None or step.plan is not plan:
            draft = self._graph_draft(plan)
            if draft is None:
                return self._verified(plan, self._proposed(plan))
            found = self._admit(plan, draft, None)
            if isinstance(found, str):
                self.eager_steps[found] += 1
                return self._verified(plan, self._proposed(plan), counts=False)
            step = found
        return self._drafted(step)

    def _drafted(self, step: CapturedStep) -> StepResult:
        """Computes a step that is one call, drafts included."""
        if step.draft is None:
            return self._replayed(step.plan, self.graphs.replay(step))
        assert self.proposer is not None
        try:
            result = self.graphs.replay(step)
        except Exception as error:  # a drafter's or the target's: what is tried next will tell
            self.proposer.failed_in_graph(step.plan, error)
            return self._verified(step.plan, DraftTrees.empty(len(step.plan)))
        self.proposer.replayed(step.plan, result)
        return self._replayed(step.plan, result)

    def _proposed(self, plan: StepPlan) -> DraftTrees:
        return DraftTrees.empty(len(plan)) if self.proposer is None else self.proposer.propose(plan)

    def _graph_draft(self, plan: StepPlan) -> GraphDraft | None:
        return None if self.proposer is None else self.proposer.graph_draft(plan)

    def _admit(self, plan: StepPlan, draft: GraphDraft | None, drafts: DraftTrees | None) -> CapturedStep | str:
        drafted = draft is not None or (drafts is not None and bool(drafts.counts.any()))
        if drafted and not self.verifier.keeps_text:
            return "the verifier weighs logits"
        return self.graphs.admit(plan, draft, drafts)

    def _verified(self, plan: StepPlan, drafts: DraftTrees, *, counts: bool = True) -> StepResult:
        """Verifies drafts that are there; ``counts`` the step if it is computed pass by pass."""
        step = self._admit(plan, None, drafts if drafts.width else None)
        if isinstance(step, str):
            self.eager_steps[step] += counts
            return self._computed(plan, drafts)
        most = 0 if self.proposer is None or not drafts.width else self.proposer.max_nodes
        return self._replayed(plan, self.graphs.replay(step, most))

    def _computed(self, plan: StepPlan, drafts: DraftTrees) -> StepResult:
        """Verifies drafts pass by pass."""
        rows = verify_rows(plan, drafts, self.seats, self.runner.groups)
        batch, output = rows.batch, self.runner.forward(rows.batch)
        verdict = self.verifier.verify(output.logits, rows.samples, drafts, batch.sample_start, self.pipeline)
        verdict = self._with_best(self.selector.select(plan, verdict), output.logits, batch.sample_start, drafts.width)
        nodes = drafts.counts.tolist()
        return StepResult(
            plan,
            np.flatnonzero(np.diff(batch.sample_start)).tolist(),
            verdict,
            [
                [RoundStats(nodes[number], len(path), len(verdict.tokens[number]))]
                for number, path in enumerate(verdict.path)
            ],
            batch=batch,
            output=output,
            logprobs=token_logprobs(self.pipeline, plan, output, verdict),
            prompt_logprobs=tuple(prompt_logprobs(self.pipeline, plan, batch, output)),
        )

    def _with_best(self, verdict: Verdict, logits: torch.Tensor, sample_start: Int32, num_nodes: int) -> Verdict:
        """Adds the likeliest tokens of each verified row, if the drafter wants them."""
        count = 0 if self.proposer is None else self.proposer.inner.needs.num_best
        if not count:
            return verdict
        best = np.full((len(sample_start) - 1, num_nodes + 1, count), -1, dtype=np.int32)
        owners, places = by_request(sample_start)
        tokens, scores = self.pipeline.best(logits[: len(owners)], min(count, logits.shape[1]))
        likeliest_first = np.take_along_axis(tokens, np.argsort(-scores, axis=1, kind="stable"), axis=1)
        best[owners, places, : tokens.shape[1]] = likeliest_first
        return replace(verdict, best=best)

    def _replayed(self, plan: StepPlan, result: GraphResult) -> StepResult:
        sampled = np.flatnonzero(plan.end == self.seats.num_tokens[plan.seats]).tolist()
        verdict, rounds = verdict_of(result), rounds_of(result)
        return StepResult(
            plan,
            sampled,
            self.selector.select(plan, verdict),
            rounds,
            num_rounds=len(result.counts),
            moved=True,
        )

    def probe(self, free_seat: int) -> None:
        """Computes a row of no request, in the padding page; raises what any request would meet."""
        seats, zeros = np.array([free_seat], dtype=np.int32), np.zeros(1, dtype=np.int32)
        one: Int32 = zeros + np.int32(1)
        state = RowState(seats, one, zeros, zeros.astype(np.int64), np.ones(1, dtype=np.bool_), zeros)
        rows = place(RowSpec(), state, DraftTrees.empty(1), self.seats, self.runner.groups)
        output = self.runner.forward(rows.batch)
        nothing = np.zeros((1, 0), dtype=np.int32)
        self.pipeline.sample(output.logits, SampleRows(seats, zeros.astype(np.int64), nothing))
        for group in self.runner.groups:
            group.store.clear_pages([0])


def verdict_of(result: GraphResult) -> Verdict:
    """All rounds' tokens one behind another."""
    found, dead_ends = _plain_tokens(result) if result.tokens.shape[2] == 1 else _tokens(result), set[int]()
    if not result.counts[0].all():
        first = result.tokens[0, :, 0].tolist()
        dead_ends = {number for number, tokens in enumerate(found) if not tokens and first[number] == BANNED}
    path = [list(range(len(tokens) - 1)) for tokens in found]
    rows = [[0] * len(tokens) for tokens in found]
    return Verdict(found, path, rows, dead_ends, samples=result.samples, best=result.best)


def _plain_tokens(result: GraphResult) -> list[list[int]]:
    """By request; a round without drafts gives one token, and none once the request has ended."""
    found: list[list[int]] = result.tokens[:, :, 0].T.tolist()
    if result.counts.all():
        return found
    return [tokens[:count] for tokens, count in zip(found, result.counts.sum(axis=0).tolist(), strict=True)]


def _tokens(result: GraphResult) -> list[list[int]]:
    """By request."""
    rounds = zip(result.counts.T.tolist(), result.tokens.swapaxes(0, 1).tolist(), strict=True)
    return [
        [token for count, found in zip(counts, tokens, strict=True) for token in found[:count]]
        for counts, tokens in rounds
    ]


def rounds_of(result: GraphResult) -> list[list[RoundStats]]:
    """Each request's rounds; plain ones count as one of several tokens."""
    if not result.nodes.any():
        return [[RoundStats(0, 0, count)] for count in result.counts.sum(axis=0).tolist()]
    columns = zip(result.nodes.T.tolist(), result.counts.T.tolist(), strict=True)
    return [
        [RoundStats(nodes, max(count - 1, 0), count) for nodes, count in zip(*rounds, strict=True)]
        for rounds in columns
    ]
