"""Hands out what a step came to: tokens to requests, K/V to the cache, seats and pages back; computes nothing."""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

import numpy as np

from paceline.cache import CacheManager
from paceline.core.batch import Int32, Verdict
from paceline.core.request import FinishReason, Request
from paceline.core.seats import Seats
from paceline.core.step import StepPlan
from paceline.engine.compute import RoundStats, StepResult
from paceline.engine.pooling import pool_hidden
from paceline.engine.stats import Counters
from paceline.sampling import SamplingState
from paceline.scheduling import Scheduler
from paceline.speculation import GuardedProposer

log = logging.getLogger(__name__)


class RequestProgress(NamedTuple):
    """What a step did for one request: how many tokens it appended."""

    request: Request
    num_new: int


class StepCommit:
    """Changes what lasts, in one order: requests, then the cache, then the drafter, then seats."""

    def __init__(
        self,
        *,
        seats: Seats,
        cache: CacheManager,
        scheduler: Scheduler,
        controls: SamplingState,
        proposer: GuardedProposer | None,
    ) -> None:
        self._seats, self._cache, self._scheduler, self._controls = seats, cache, scheduler, controls
        self._proposer = proposer
        self.counters = Counters(max_depth=scheduler.max_depth)
        self.restarting: list[Request] = []
        """Requests that start over without drafts once the step is committed."""

    def commit(self, result: StepResult) -> list[RequestProgress]:
        plan, verdict = result.plan, result.verdict
        progress = self._accept(result)
        self._commit_cache(plan, verdict, moved=result.moved)
        if self._proposer is not None:
            self._proposer.observe(plan, verdict)
        self._publish(plan, verdict)
        for request in [request for request in plan.requests if request.finish_reason is not None]:
            self.end(request)
        while self.restarting:
            self._scheduler.preempt(self.restarting.pop())
        return progress

    def end(self, request: Request) -> None:
        """Takes a finished request out, and gives back all it held."""
        self._scheduler.remove(request)
        self.counters.record_finished(request)

    def fail(self, request: Request, error: str) -> None:
        """As ``end``, with an error."""
        _set_error(request, error)
        self.end(request)

    def refused(self) -> list[RequestProgress]:
        """Requests that could not even be seated."""
        refused, self._scheduler.refused = self._scheduler.refused, []
        for request in refused:
            self.counters.record_finished(request)
        return [RequestProgress(request, 0) for request in refused]

    def _accept(self, result: StepResult) -> list[RequestProgress]:
        """Hands each request its tokens, which it may cut short; the verdict shrinks with it."""
        plan, sampled, verdict = result.plan, result.sampled, result.verdict
        now = time.monotonic()
        for request, place, entry in result.prompt_logprobs:
            assert request.group.prompt_logprobs is not None
            request.group.prompt_logprobs[place] = entry
        progress = []
        if result.batch is not None and result.output is not None:
            progress += [RequestProgress(request, 0) for request in pool_hidden(plan, result.batch, result.output)]
        logprobs = result.logprobs or {}
        for number, kept in zip(sampled, self._take(plan, sampled, verdict), strict=True):
            request, tokens, path = plan.requests[number], verdict.tokens[number], verdict.path[number]
            rounds = result.rounds[number]
            if not tokens:
                self._without_token(request, drafted=rounds[0].num_nodes > 0, banned=number in verdict.dead_ends)
            if kept < len(tokens):
                del tokens[kept:], verdict.rows[number][kept:], path[kept:]
            if number in logprobs:
                request.logprobs += logprobs[number][:kept]
                request.cumulative_logprob += sum(entry.logprob for entry in logprobs[number][:kept])
            self._record_rounds(request, rounds, kept, now)
            progress.append(RequestProgress(request, kept))
        return progress

    def _record_rounds(self, request: Request, rounds: list[RoundStats], kept: int, now: float) -> None:
        """Counts the rounds of a request up to its end."""
        if len(rounds) == 1:
            num_nodes, num_accepted, num_tokens = rounds[0]
            self.counters.record(request, num_nodes, num_accepted, min(kept, num_tokens), now)
            return
        for stats in rounds:
            self.counters.record(request, stats.num_nodes, stats.num_accepted, min(kept, stats.num_tokens), now)
            kept -= stats.num_tokens
            if kept <= 0:
                return

    def _take(self, plan: StepPlan, sampled: list[int], verdict: Verdict) -> list[int]:
        """Has the requests ``sampled`` and the controls of their seats take in tokens; returns how many each kept."""
        tokens, kept = [verdict.tokens[number] for number in sampled], []
        requests = [plan.requests[number] for number in sampled]
        for request, some in zip(requests, tokens, strict=True):
            before = len(request.output_token_ids)
            try:
                kept.append(request.accept(some))
            except Exception as error:  # its text
                del request.output_token_ids[before:]
                _blame(request, error)
                kept.append(0)
        taken = [some[:count] for some, count in zip(tokens, kept, strict=True)]
        seats, state = plan.seats[sampled], self._controls
        self._seats.append(seats, taken)
        active = state.active[seats]
        for place in np.flatnonzero(active.any(axis=1)).tolist() if active.any() else ():
            try:
                state.commit(int(seats[place]), taken[place])
            except Exception as error:  # one of its controls
                output = requests[place].output_token_ids
                del output[len(output) - kept[place] :]
                _blame(requests[place], error)
                kept[place] = 0
        return kept

    def _without_token(self, request: Request, *, drafted: bool, banned: bool) -> None:
        """Ends a text that may not go on. NaN fails the request; but if there was a draft the NaN may be a drafted
        token's, so it first starts over without one."""
        if banned:
            request.stop_reason = "every token is banned"
            request.finish_reason = FinishReason.STOP
        elif drafted:
            request.group.speculate = False
            self.restarting.append(request)
        else:
            _set_error(request, "the model returned NaN")

    def _commit_cache(self, plan: StepPlan, verdict: Verdict, *, moved: bool) -> None:
        """Makes the accepted nodes' K/V contiguous and moves ``num_cached`` up to one short of the known tokens."""
        end = plan.end
        if any(verdict.path):
            if not moved:
                self._close_gaps(plan.seats, end, verdict.path)
            end = end + np.array([len(path) for path in verdict.path], dtype=np.int32)
        # A request that ended inside its draft has no pending token left; it leaves in this very step.
        self._cache.commit(plan.seats, end, self._scheduler.target_groups)

    def _close_gaps(self, seats: Int32, end: Int32, paths: list[list[int]]) -> None:
        """Moves accepted nodes, whose numbers rise along a path, to where they would lie had nothing been rejected."""
        moves = [
            (number, node, place)
            for number, path in enumerate(paths)
            if path and path[-1] != len(path) - 1
            for place, node in enumerate(path)
            if node != place
        ]
        if moves:
            owner, source, target = np.array(moves, dtype=np.int32).T
            for index in self._scheduler.target_groups:
                self._cache.groups[index].move(seats[owner], end[owner] + source, end[owner] + target)

    def _publish(self, plan: StepPlan, verdict: Verdict) -> None:
        """Lets others share a prompt as soon as a token sampled behind it has proved its K/V finite."""
        if plan.num_known.max() == 1:
            return
        for number in np.flatnonzero(plan.num_known > 1).tolist():
            if verdict.tokens[number]:
                self._scheduler.publish(plan.requests[number])


def failure_of(error: Exception) -> str:
    """Gives callers the kind of an exception. Its message may tell of other requests, and of this machine."""
    return type(error).__name__


def _set_error(request: Request, error: str) -> None:
    request.error, request.finish_reason = error, FinishReason.ERROR


def _blame(request: Request, error: Exception) -> None:
    """Fails a request whose text or controls raised when they took in its tokens."""
    log.warning("request %s failed", request.id, exc_info=error)
    request.detokenizer = None
    _set_error(request, f"the engine failed on this request ({failure_of(error)})")
