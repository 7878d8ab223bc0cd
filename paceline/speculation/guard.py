"""Keeps a faulty proposer from harming requests: its exceptions and garbage cost speed, never tokens."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paceline.core.batch import Drafts, Int32, Verdict, Works
from paceline.speculation.base import Proposer, ProposerTools

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

    def __init__(self, inner: Proposer, *, vocab_size: int) -> None:
        self.inner, self.vocab_size = inner, vocab_size
        self.model = inner.model
        self.counters = GuardCounters()
        self._in_a_row = 0

    def bind(self, tools: ProposerTools) -> None:
        self.tools = tools
        self.inner.bind(tools)

    def num_nodes(self, depth: int) -> int:
        return 0 if self.counters.disabled else self.inner.num_nodes(depth)

    def propose(self, works: Works) -> Drafts:
        if self.counters.disabled:
            return Drafts.empty(len(works))
        try:
            drafts = self._checked(works, self.inner.propose(works))
        except Exception as error:  # whatever a drafter raises, its requests go on without it
            self._failed("propose", error, works.seats)
            return Drafts.empty(len(works))
        self._in_a_row = 0
        return drafts

    def observe(self, works: Works, verdict: Verdict) -> None:
        if self.counters.disabled:
            return
        try:
            self.inner.observe(works, verdict)
        except Exception as error:
            self._failed("observe", error, works.seats)

    def forget(self, seat: int) -> None:
        self.inner.forget(seat)

    def _failed(self, call: str, error: Exception, seats: Int32) -> None:
        self.counters.num_failures += 1
        self._in_a_row += 1
        self.counters.disabled = self._in_a_row >= MAX_FAILURES_IN_A_ROW
        then = "speculation is now off" if self.counters.disabled else "these requests decode without a draft"
        log.warning("the drafter failed in %s (%s: %s); %s", call, type(error).__name__, error, then)
        self._reset(seats.tolist())

    def _reset(self, seats: list[int]) -> None:
        """What a failed drafter has cached may be NaN or half written: it starts over."""
        for seat in seats:
            self.inner.forget(seat)
            for index in self.tools.groups:
                self.tools.cache.groups[index].clear(seat)

    def _checked(self, works: Works, drafts: Drafts) -> Drafts:
        bad = self._malformed(works, drafts)
        if not bad.any():
            return drafts
        self.counters.num_rejected_drafts += int(bad.sum())
        log.warning("%d malformed drafts were dropped", int(bad.sum()))
        self._reset(works.seats[bad].tolist())
        tokens, parents = np.where(bad[:, None], 0, drafts.tokens), np.where(bad[:, None], -1, drafts.parents)
        return Drafts(tokens, parents, np.where(bad, 0, drafts.counts).astype(np.int32))

    def _malformed(self, works: Works, drafts: Drafts) -> npt.NDArray[np.bool_]:
        """[B] token outside the vocabulary, parent at or after its child, or more nodes or depth than allowed."""
        node = np.arange(drafts.width)
        used = node < drafts.counts[:, None]
        wild = (
            (drafts.tokens < 0) | (drafts.tokens >= self.vocab_size) | (drafts.parents < -1) | (drafts.parents >= node)
        )
        allowed = np.array([self.inner.num_nodes(int(depth)) if depth else 0 for depth in works.draft_budget])
        bad: npt.NDArray[np.bool_] = np.any(used & wild, axis=1) | (drafts.counts > allowed) | (drafts.counts < 0)
        if not bad.any() and drafts.width:
            bad = np.any(used & (drafts.depths > works.draft_budget[:, None]), axis=1)
        return bad
