"""One step: plan, propose, assemble, forward, verify, accept, commit, observe. Everything else serves it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import numpy as np

from paceline.cache import CacheManager
from paceline.core.batch import Drafts, Verdict, Works
from paceline.core.config import EngineConfig
from paceline.core.request import FinishReason, Group, Request
from paceline.core.seats import Seats
from paceline.engine.isolation import isolate
from paceline.engine.outcome import Computation, Outcome
from paceline.engine.pooling import pool_hidden
from paceline.engine.stats import Counters
from paceline.engine.step_times import StepTimes
from paceline.runner import ModelRunner
from paceline.sampling import Pipeline, selectors
from paceline.scheduling import Scheduler
from paceline.speculation import GuardedProposer, Verifier

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """What a step did for one request: how many tokens it appended."""

    request: Request
    num_new: int


class Engine:
    """Holds the parts and runs steps; knows nothing of text, threads or HTTP."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        seats: Seats,
        cache: CacheManager,
        scheduler: Scheduler,
        runner: ModelRunner,
        pipeline: Pipeline,
        verifier: Verifier,
        proposer: GuardedProposer | None,
    ) -> None:
        self.config, self.seats, self.cache, self.scheduler, self.runner = config, seats, cache, scheduler, runner
        self.pipeline, self.verifier, self.proposer = pipeline, verifier, proposer
        self.target_groups = scheduler.target_groups
        self.counters = Counters(max_depth=scheduler.max_depth)
        self.step_times = StepTimes()
        self.selector = selectors["sample"]
        self.computation = Computation(
            seats=seats, runner=runner, pipeline=pipeline, verifier=verifier, selector=self.selector
        )
        self._restarting: list[Request] = []
        self._failure = ""
        """The kind of the exception that a step met last."""

    def regimes(self, num_tokens: int) -> tuple[int, ...]:
        """The regime of a request of at most ``num_tokens`` tokens, in each model whose regimes depend on that."""
        models = [self.runner.model, self.proposer.model if self.proposer is not None else None]
        found = [None if model is None else model.regimes(np.array([num_tokens])) for model in models]
        return tuple(0 if regime is None else int(regime[0]) for regime in found)

    def add(self, group: Group) -> None:
        for request in group.members:
            self.scheduler.add(request)

    def abort(self, group: Group) -> None:
        """Ends every unfinished member at once and gives back all it held, also after a step that raised."""
        for request in group.members:
            if not request.finished:
                request.finish_reason = FinishReason.ABORT
                self.counters.record_finished(request)
            self.scheduler.remove(request)

    def fail(self, group: Group, error: str) -> None:
        """Ends every unfinished member with an error, and gives back all it held."""
        for request in group.members:
            if not request.finished:
                self._fail(request, error)
                self._end(request)

    @property
    def has_work(self) -> bool:
        return self.scheduler.num_unfinished > 0

    def step(self) -> list[Progress]:
        """Advances every planned request by at least one token, or one chunk of its prompt."""
        began = time.monotonic()
        works = self.scheduler.plan()
        progress = [Progress(request, 0) for request in self._refused()]
        if not len(works):
            return progress
        self.counters.num_steps += 1
        drafts = self._propose(works)
        if self._attempt(works, drafts, progress):
            kept = ((item.request, item.num_new) for item in progress)
            self.step_times.record(works, drafts, kept, time.monotonic() - began)
        else:
            self._isolate(works, progress)
        return progress

    def _propose(self, works: Works) -> Drafts:
        if self.proposer is None:
            return Drafts.empty(len(works))
        return self.proposer.propose(works)

    def _refused(self) -> list[Request]:
        """Requests that could not even be seated."""
        refused, self.scheduler.refused = self.scheduler.refused, []
        for request in refused:
            self.counters.record_finished(request)
        return refused

    def _attempt(self, works: Works, drafts: Drafts, progress: list[Progress]) -> bool:
        """Computes a step and commits it; False, and nothing has happened, if computing it raised."""
        try:
            outcome = self.computation.run(works, drafts)
        except Exception as error:  # out of memory, or something about one of the requests
            self._failure = failure_of(error)
            log.warning("a step of %d requests failed", len(works), exc_info=error)
            return False
        progress += self._accept(outcome)
        self._commit(works, outcome.verdict)
        if self.proposer is not None:
            self.proposer.observe(works, outcome.verdict)
        self._publish(works, outcome.verdict)
        self._retire(works)
        return True

    def _isolate(self, works: Works, progress: list[Progress]) -> None:
        """Repeats a step that failed, without drafts and in parts; ends the requests that fail alone.

        Raises:
            Exception: what a row that is nobody's meets as well: then no request is to blame.
        """
        healthy = False

        def attempt(part: Works) -> bool:
            nonlocal healthy
            succeeded = self._attempt(part, Drafts.empty(len(part)), progress)
            healthy |= succeeded
            return succeeded

        def fail(request: Request) -> None:
            nonlocal healthy
            seat = request.seat
            self._fail(request, f"the engine failed on this request ({self._failure})")
            self._end(request)
            progress.append(Progress(request, 0))
            if not healthy:
                self.computation.probe(seat)
                healthy = True

        isolate(works, attempt, fail)

    def _accept(self, outcome: Outcome) -> list[Progress]:
        """Hands each request its tokens, which it may cut short; the verdict shrinks with it."""
        works, batch, drafts, verdict = outcome.works, outcome.batch, outcome.drafts, outcome.verdict
        now = time.monotonic()
        for request, place, entry in outcome.prompt_logprobs:
            assert request.group.prompt_logprobs is not None
            request.group.prompt_logprobs[place] = entry
        progress = [Progress(request, 0) for request in pool_hidden(works, batch, outcome.output)]
        for number, request in enumerate(works.requests):
            if batch.sample_start[number] == batch.sample_start[number + 1]:
                continue  # its chunk did not reach the last known token
            kept = self._take(request, verdict.tokens[number])
            if not verdict.tokens[number]:
                self._without_token(request, drafted=bool(drafts.counts[number]), banned=number in verdict.dead_ends)
            del verdict.tokens[number][kept:], verdict.rows[number][kept:], verdict.path[number][kept:]
            for entry in outcome.logprobs.get(number, ())[:kept]:
                request.logprobs.append(entry)
                request.cumulative_logprob += entry.logprob
            self.counters.record(request, int(drafts.counts[number]), len(verdict.path[number]), kept, now)
            progress.append(Progress(request, kept))
        return progress

    def _take(self, request: Request, tokens: list[int]) -> int:
        """Has a request and the controls of its seat take in tokens; returns how many were kept."""
        before = len(request.output_token_ids)
        try:
            kept = request.accept(tokens)
            self.seats.append(request.seat, tokens[:kept])
            self.pipeline.state.commit(request.seat, tokens[:kept])
        except Exception as error:  # its text or one of its controls
            log.warning("request %s failed", request.id, exc_info=error)
            del request.output_token_ids[before:]
            request.watcher = None
            self._fail(request, f"the engine failed on this request ({failure_of(error)})")
            return 0
        return kept

    @staticmethod
    def _fail(request: Request, error: str) -> None:
        request.finish_reason, request.error = FinishReason.ERROR, error

    def _end(self, request: Request) -> None:
        self.scheduler.remove(request)
        self.counters.record_finished(request)

    def _without_token(self, request: Request, *, drafted: bool, banned: bool) -> None:
        """Ends a text that may not go on. NaN fails the request; but if there was a draft the NaN may be a drafted
        token's, so it first starts over without one."""
        if banned:
            request.finish_reason = FinishReason.STOP
            request.stop_reason = "every token is banned"
        elif drafted:
            request.group.speculate = False
            self._restarting.append(request)
        else:
            self._fail(request, "the model returned NaN")

    def _commit(self, works: Works, verdict: Verdict) -> None:
        """Makes the accepted nodes' K/V contiguous and moves ``num_cached`` up to one short of the known tokens."""
        source, target, owner = [], [], []
        for number, path in enumerate(verdict.path):
            for place, node in enumerate(path):
                if node != place:
                    source.append(node)
                    target.append(place)
                    owner.append(number)
        if owner:
            of = np.array(owner)
            slots = (works.end[of] + np.array(moved, dtype=np.int32) for moved in (source, target))
            from_slots, to_slots = slots
            for group in self.runner.groups:
                group.move(works.seats[of], from_slots, to_slots)
        accepted = np.array([len(path) for path in verdict.path], dtype=np.int32)
        # A request that ended inside its draft has no pending token left; it leaves in this very step.
        self.cache.commit(works.seats, works.end + accepted, self.target_groups)

    def _publish(self, works: Works, verdict: Verdict) -> None:
        """Lets others share a prompt as soon as a token sampled behind it has proved its K/V finite."""
        for number in np.flatnonzero(works.num_known > 1).tolist():
            if verdict.tokens[number]:
                self.scheduler.publish(works.requests[number])

    def _retire(self, works: Works) -> None:
        for request in works.requests:
            if request.finished:
                self._end(request)
        while self._restarting:
            self.scheduler.preempt(self._restarting.pop())


def failure_of(error: Exception) -> str:
    """What a caller may know of an exception: its kind. Its message may tell of others, and of this machine."""
    return type(error).__name__
