"""Knows how much of each sequence a drafter's own cache holds, and who is fed; nothing of how drafts are made."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paceline.core.batch import Int32, Verdict
from paceline.core.step import StepPlan
from paceline.speculation.base import ProposerNeeds, ProposerTools

Bool = npt.NDArray[np.bool_]


class DraftCache:
    """The cache of a drafter with stages; one without layers caches nothing.

    It lacks known tokens for whatever reason: a prompt chunk, the token behind an accepted draft, a while without
    drafting. They are fed first, in the next draft.
    """

    def __init__(self, needs: ProposerNeeds, tools: ProposerTools) -> None:
        self.max_positions = (needs.model or tools.target.model).config.max_position_embeddings
        self._cache, self._numbers = tools.cache, tools.groups
        self._follows_target = needs.features is not None or needs.shares_target_cache
        self.feeds_again = needs.makes_trees or self._follows_target
        """Accepted nodes are computed again, as known tokens."""
        self.groups = [tools.cache.groups[index] for index in tools.groups]
        self.written: Int32 = np.zeros(tools.seats.capacity, dtype=np.int32)
        """[S] slots that hold K/V of known tokens, or of drafted ones that may yet be accepted."""

    def active(self, plan: StepPlan) -> Bool:
        """[B] whether a request speculates, and its drafts stay within the model's own context."""
        speculate = np.array([request.group.speculate for request in plan.requests], dtype=np.bool_)
        further = (plan.num_rounds - 1) * (plan.draft_depth + 1)
        fits: Bool = plan.end + plan.draft_depth + further <= self.max_positions
        if self._follows_target:  # the target has computed all that is known but the last token
            fits &= plan.start == plan.end - 1
        return speculate & fits

    def start(self, plan: StepPlan, active: Bool) -> Int32:
        """[B] the first known token that is fed; the slot behind the last one for a request that is left alone."""
        cached = self.groups[0].num_cached[plan.seats] if self.groups else plan.end - 1
        found: Int32 = np.where(active, np.minimum(cached, plan.end), plan.end).astype(np.int32)
        return found

    def note(self, plan: StepPlan, active: Bool, ends: Int32) -> None:
        """``ends`` int32[B]: slots that hold K/V now, of drafted tokens too. Those of a tree are computed again."""
        seats = plan.seats[active]
        self.written[seats] = np.minimum(ends, plan.end)[active] if self.feeds_again else ends[active]

    def commit(self, plan: StepPlan, verdict: Verdict) -> None:
        """Keeps what was accepted."""
        if not self.groups:
            return
        active = self.active(plan)
        seats = plan.seats[active]
        accepted = np.array([len(path) for path in verdict.path], dtype=np.int32)[active]
        valid = np.minimum(self.written[seats], plan.end[active] + accepted)
        self.written[seats] = valid  # a request that is not fed next time has no more than this
        self._cache.commit(seats, valid, self._numbers)

    def forget(self, seat: int) -> None:
        self.written[seat] = 0
