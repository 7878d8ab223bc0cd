"""Keeps a faulty proposer from harming requests: its exceptions and garbage cost speed, never tokens."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from paceline.core.batch import Int32, Verdict
from paceline.core.step import DraftTrees, StepPlan
from paceline.runner import GraphDraft, GraphResult
from paceline.speculation.base import CopiesOnHost, DraftsInGraph, DraftsOnHost, Proposer, ProposerTools
from paceline.speculation.catch_up import DraftCache
from paceline.speculation.checks import check_arrays, drawn, node_table
from paceline.speculation.passes import draft_in_passes, joined

Bool = npt.NDArray[np.bool_]

log = logging.getLogger(__name__)

MAX_FAILURES_IN_A_ROW = 3


@dataclass(slots=True)
class GuardCounters:
    num_failures: int = 0
    """Calls that raised."""
    num_rejected_drafts: int = 0
    """Drafts dropped because they were malformed."""
    disabled: bool = False


class GuardedProposer:
    """Passes calls on; what raises or makes no sense becomes "no draft", with a counter and a warning."""

    def __init__(
        self, inner: Proposer, *, name: str, vocab_size: int, max_depth: int, takes_trees: bool = True
    ) -> None:
        self.inner, self.name, self.vocab_size, self.takes_trees = inner, name, vocab_size, takes_trees
        self.model, self.makes_trees = inner.needs.model, inner.needs.makes_trees
        self.counters = GuardCounters()
        self.cache: DraftCache | None = None
        """Of a proposer with stages."""
        self._in_a_row = Counter[str]()
        self._nodes = node_table(inner, max_depth)
        self._nodes_by_depth = np.array(self._nodes)
        self.max_nodes = max(self._nodes)

    def bind(self, tools: ProposerTools) -> None:
        self.tools = tools
        self._strikes = np.zeros(tools.seats.capacity, dtype=np.int32)
        if isinstance(self.inner, DraftsInGraph):
            self.cache = DraftCache(self.inner.needs, tools)
        self.inner.bind(tools)

    def num_nodes(self, depth: int) -> int:
        return 0 if self.counters.disabled else self._nodes[depth]

    def graph_draft(self, plan: StepPlan) -> GraphDraft | None:
        """What the proposer does in the rounds of a step, if it does it there."""
        inner = self.inner
        if (
            self.counters.disabled
            or self.cache is None
            or self.tools.needs_probs
            or not isinstance(inner, DraftsInGraph)
        ):
            return None
        if isinstance(inner, CopiesOnHost) and self._has_copies(inner, plan):
            return None
        active = self.cache.active(plan)
        if not active.any() or (plan.num_rounds > 1 and (plan.draft_depth[~active] > 0).any()):
            return None
        depth: Int32 = np.where(active, plan.draft_depth, 0).astype(np.int32)
        nodes = self._nodes[int(depth.max(initial=0))]
        start = self.cache.start(plan, active)
        return GraphDraft(self.name, inner.draft, self.tools.runner, self.makes_trees, start, depth, nodes)

    def _has_copies(self, inner: CopiesOnHost, plan: StepPlan) -> bool:
        try:
            return bool(inner.copies(self._copied(plan)).counts.any())
        except Exception as error:
            self._failed("copies", error, plan.seats)
            return False

    def replayed(self, plan: StepPlan, result: GraphResult) -> None:
        """Takes note of drafts that were made in the rounds of a step."""
        assert self.cache is not None
        self._in_a_row["graph"] = 0
        active = self.cache.active(plan)
        drafted = active & (plan.draft_depth > 0)
        self.cache.note(plan, active, np.where(drafted, result.draft_end, plan.end).astype(np.int32))
        counts = np.where(drafted, plan.draft_depth, 0).astype(np.int32)
        self._struck(plan, counts, np.where(result.broken, 0, counts).astype(np.int32))

    def failed_in_graph(self, plan: StepPlan, error: Exception) -> None:
        """The rounds of a step raised: the drafter starts over, without pages, so that this step has no drafts."""
        self._failed("graph", error, plan.seats)

    def propose(self, plan: StepPlan) -> DraftTrees:
        if self.counters.disabled:
            return DraftTrees.empty(len(plan))
        try:
            drafts = self._checked(plan, self._proposed(self._copied(plan)))
        except Exception as error:  # whatever a drafter raises, its requests go on without it
            self._failed("propose", error, plan.seats)
            return DraftTrees.empty(len(plan))
        self._in_a_row["propose"] = 0
        return drafts

    def _proposed(self, plan: StepPlan) -> DraftTrees:
        inner = self.inner
        if isinstance(inner, DraftsOnHost):
            return inner.propose(plan)
        assert isinstance(inner, DraftsInGraph)
        assert self.cache is not None
        active = self.cache.active(plan)
        copies = inner.copies(plan) if isinstance(inner, CopiesOnHost) else None
        if copies is not None:
            active &= copies.counts == 0
            if not active.any():
                self.cache.note(plan, active, plan.end)
                return copies
        drafts = draft_in_passes(inner, plan, active, cache=self.cache, tools=self.tools, nodes=self._nodes)
        return drafts if copies is None else joined(drafts, copies)

    def observe(self, plan: StepPlan, verdict: Verdict) -> None:
        if self.counters.disabled:
            return
        try:
            if self.cache is not None:
                self.cache.commit(plan, verdict)
            self.inner.observe(plan, verdict)
        except Exception as error:
            self._failed("observe", error, plan.seats)
        else:
            self._in_a_row["observe"] = 0

    def forget(self, seat: int) -> None:
        self._strikes[seat] = 0
        self._drop(seat)

    def _drop(self, seat: int) -> None:
        if self.cache is not None:
            self.cache.forget(seat)
        try:
            self.inner.forget(seat)
        except Exception as error:
            self._count("forget", error)

    def _failed(self, call: str, error: Exception, seats: Int32) -> None:
        if self.tools.cache.torn:  # nobody can go on from there: the engine makes its books anew
            raise error
        self._count(call, error)
        self._reset(seats.tolist())

    def _count(self, call: str, error: Exception) -> None:
        self.counters.num_failures += 1
        self._in_a_row[call] += 1
        self.counters.disabled |= self._in_a_row[call] >= MAX_FAILURES_IN_A_ROW
        then = "speculation is now off" if self.counters.disabled else "these requests decode without a draft"
        log.warning("the drafter failed in %s (%s: %s); %s", call, type(error).__name__, error, then)

    def _reset(self, seats: list[int]) -> None:
        """What a failed drafter has cached, or found in the index, may be NaN or half written: it starts over."""
        for seat in seats:
            self._drop(seat)
            self.tools.cache.discard(seat, self.tools.groups)

    def _copied(self, plan: StepPlan) -> StepPlan:
        """Copies: what a drafter writes into its arguments must not reach the step."""
        return StepPlan(
            requests=list(plan.requests),
            seats=plan.seats.copy(),
            start=plan.start.copy(),
            num_known=plan.num_known.copy(),
            draft_depth=plan.draft_depth.copy(),
            num_rounds=plan.num_rounds,
        )

    def _checked(self, plan: StepPlan, drafts: DraftTrees) -> DraftTrees:
        check_arrays(drafts, len(plan), self.vocab_size, self.tools.pipeline.state.device)
        fresh = DraftTrees(drafts.tokens, drafts.parents, drafts.counts, drafts.probs)  # of which nothing is cached yet
        safe, bad = (fresh, self._malformed(plan, fresh)) if fresh.is_chain else self._checked_trees(plan, fresh)
        counts = np.where(bad, 0, drafts.counts).astype(np.int32) if bad.any() else drafts.counts
        if drafts.probs is not None:
            counts = drawn(replace(safe, counts=counts), drafts.probs)
        counts = self._struck(plan, drafts.counts, counts)
        return safe if counts is safe.counts and counts.dtype == np.int32 else replace(safe, counts=counts)

    def _checked_trees(self, plan: StepPlan, drafts: DraftTrees) -> tuple[DraftTrees, Bool]:
        """Drafts of which every node has a parent before it, and which of them were malformed [B]."""
        node = np.arange(drafts.width, dtype=np.int32)
        wild = (drafts.parents < -1) | (drafts.parents >= node)
        if not self.takes_trees:
            wild |= drafts.parents != node - 1
        # A chain in their place: what is dropped or padding may hold anything, and depths are read of every node.
        safe = replace(drafts, parents=np.where(wild, node - 1, drafts.parents))
        return safe, self._malformed(plan, safe) | (wild & (node < drafts.counts[:, None])).any(axis=1)

    def _struck(self, plan: StepPlan, claimed: Int32, counts: Int32) -> Int32:
        """Takes note of the drafts of which less than was claimed is left; returns ``counts`` [B]."""
        bad = counts != claimed
        strikes = self._strikes[plan.seats]
        if not (bad.any() or strikes.any()):
            return counts
        self._strikes[plan.seats] = np.where(bad, strikes + 1, np.where(claimed > 0, 0, strikes))
        for number in np.flatnonzero(self._strikes[plan.seats] >= MAX_FAILURES_IN_A_ROW).tolist():
            # No more drafts are asked for, and the drafter stops feeding its cache, perhaps with NaN.
            plan.requests[number].group.speculate = False
        if bad.any():
            self.counters.num_rejected_drafts += int(bad.sum())
            log.warning("%d malformed drafts were dropped", int(bad.sum()))
            self._reset(plan.seats[bad].tolist())
        return counts

    def _malformed(self, plan: StepPlan, drafts: DraftTrees) -> Bool:
        """[B] a token outside the vocabulary, or more nodes or depth than allowed."""
        used = np.arange(drafts.width) < drafts.counts[:, None]
        limit = np.minimum(self._nodes_by_depth[plan.draft_depth], drafts.width)
        wild = (drafts.tokens < 0) | (drafts.tokens >= self.vocab_size) | (drafts.depths > plan.draft_depth[:, None])
        bad: Bool = np.any(used & wild, axis=1) | (drafts.counts > limit) | (drafts.counts < 0)
        return bad
