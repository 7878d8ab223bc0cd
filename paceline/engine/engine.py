"""One step: plan, propose, assemble, forward, verify, accept, commit, observe. Everything else serves it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from paceline.cache import CacheManager
from paceline.core.batch import Batch, Drafts, Output, Verdict, Works
from paceline.core.config import EngineConfig
from paceline.core.request import FinishReason, Group, Request
from paceline.core.seats import Seats
from paceline.engine.logprobs import record_logprobs, record_prompt_logprobs
from paceline.engine.pooling import pool_hidden
from paceline.engine.stats import Counters
from paceline.engine.step_times import StepTimes
from paceline.runner import ModelRunner, assemble, sample_rows
from paceline.sampling import Pipeline, selectors
from paceline.scheduling import Scheduler
from paceline.speculation import GuardedProposer, Verifier


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
        self._restarting: list[Request] = []

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

    @property
    def has_work(self) -> bool:
        return self.scheduler.num_unfinished > 0

    def step(self) -> list[Progress]:
        """Advances every planned request by at least one token, or one chunk of its prompt."""
        began = time.monotonic()
        works = self.scheduler.plan()
        if not len(works):
            return []
        drafts = self._propose(works)
        batch = assemble(works, drafts, self.seats, self.runner.groups)
        output = self.runner.forward(batch)
        rows = sample_rows(works, drafts, self.seats, batch.sample_start)
        verdict = self.verifier.verify(output.logits, rows, drafts, batch.sample_start, self.pipeline)
        verdict = self.selector.select(works, verdict)
        progress = self._accept(works, batch, drafts, output, verdict)
        self._commit(works, verdict)
        if self.proposer is not None:
            self.proposer.observe(works, verdict)
        self._publish(works, verdict)
        self._retire(works)
        kept = ((item.request, item.num_new) for item in progress)
        self.step_times.record(works, drafts, kept, time.monotonic() - began)
        return progress

    def _propose(self, works: Works) -> Drafts:
        if self.proposer is None:
            return Drafts.empty(len(works))
        return self.proposer.propose(works)

    def _accept(self, works: Works, batch: Batch, drafts: Drafts, output: Output, verdict: Verdict) -> list[Progress]:
        """Hands each request its tokens, which it may cut short; the verdict shrinks with it."""
        now = time.monotonic()
        record_prompt_logprobs(self.pipeline, works, batch, output)
        progress = [Progress(request, 0) for request in pool_hidden(works, batch, output)]
        for number, request in enumerate(works.requests):
            if batch.sample_start[number] == batch.sample_start[number + 1]:
                continue  # its chunk did not reach the last known token
            kept = request.accept(verdict.tokens[number])
            if not verdict.tokens[number]:
                self._without_token(request, drafted=bool(drafts.counts[number]), banned=number in verdict.dead_ends)
            del verdict.tokens[number][kept:], verdict.rows[number][kept:], verdict.path[number][kept:]
            self.seats.append(request.seat, verdict.tokens[number])
            self.pipeline.state.commit(request.seat, verdict.tokens[number])
            self.counters.record(request, int(drafts.counts[number]), len(verdict.path[number]), kept, now)
            progress.append(Progress(request, kept))
        record_logprobs(self.pipeline, works, output, verdict)
        self.counters.num_steps += 1
        return progress

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
            request.finish_reason = FinishReason.ERROR
            request.error = "the model returned NaN"

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
                self.scheduler.remove(request)
                self.counters.record_finished(request)
        while self._restarting:
            self.scheduler.preempt(self._restarting.pop())
