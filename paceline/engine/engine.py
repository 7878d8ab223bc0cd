"""One step: plan, compute, commit. Everything else serves it."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import numpy as np

from paceline.cache import CacheManager
from paceline.core.config import EngineConfig
from paceline.core.interruption import StepInterruptedError
from paceline.core.request import FinishReason, Group, Request
from paceline.core.seats import Seats
from paceline.core.step import StepPlan
from paceline.engine.abandonment import Abandonment
from paceline.engine.commit import RequestProgress, StepCommit, failure_of
from paceline.engine.compute import StepComputation, StepResult
from paceline.engine.isolation import isolate
from paceline.engine.pacer import StepPacer
from paceline.engine.recovery import recovering
from paceline.engine.stats import Counters
from paceline.runner import ModelRunner, StepGraphs
from paceline.sampling import Pipeline, selectors
from paceline.scheduling import Scheduler
from paceline.speculation import GuardedProposer, Verifier

log = logging.getLogger(__name__)


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
        self.pacer = StepPacer(config.num_scheduler_steps)
        self.selector = selectors["sample"]
        num_best = 0 if proposer is None else proposer.inner.needs.num_best
        self.computation = StepComputation(
            seats=seats,
            runner=runner,
            pipeline=pipeline,
            verifier=verifier,
            proposer=proposer,
            selector=self.selector,
            graphs=StepGraphs(runner, seats, pipeline, enforce_eager=config.enforce_eager, num_best=num_best),
        )
        scheduler.can_repeat = self.computation.can_repeat
        self.committing = StepCommit(
            seats=seats, cache=cache, scheduler=scheduler, controls=pipeline.state, proposer=proposer
        )
        self.abandonment = Abandonment()
        self.torn = False
        """A change of the books was cut short, and they are not rebuilt yet."""
        self._failure = ""
        """The kind of the exception that a step met last."""

    @property
    def counters(self) -> Counters:
        """Totals since the engine was built, or since they were set anew."""
        return self.committing.counters

    @counters.setter
    def counters(self, counters: Counters) -> None:
        self.committing.counters = counters

    def regimes(self, num_tokens: int) -> tuple[int, ...]:
        """The regime of a request of at most ``num_tokens`` tokens, in each model whose regimes depend on that."""
        models = [self.runner.model, self.proposer.model if self.proposer is not None else None]
        found = [None if model is None else model.regimes(np.array([num_tokens])) for model in models]
        return tuple(0 if regime is None else int(regime[0]) for regime in found)

    @recovering
    def add(self, group: Group) -> None:
        """Begins a call; those of its members that were added before are left alone."""
        for request in group.members:
            if request not in self.scheduler.unfinished:
                self.scheduler.add(request)

    @recovering
    def abort(self, group: Group) -> None:
        """Ends every unfinished member at once and gives back all it held, also after a step that raised."""
        for request in group.members:
            unfinished = not request.finished
            if unfinished:
                request.finish_reason = FinishReason.ABORT
            self.scheduler.remove(request)
            if unfinished:
                self.counters.record_finished(request)

    @recovering
    def fail(self, group: Group, error: str) -> None:
        """Ends every unfinished member with an error, and gives back all it held."""
        for request in group.members:
            if not request.finished:
                self.committing.fail(request, error)

    @property
    def has_work(self) -> bool:
        return self.scheduler.num_unfinished > 0

    def recover(self) -> None:
        """Rebuilds all books from the requests themselves; their texts go on unchanged."""
        self.committing.restarting.clear()
        self.runner.executor.forget()
        self.computation.graphs.forget()
        for request in self.scheduler.restart():
            self.counters.record_finished(request)

    @recovering
    def step(self) -> list[RequestProgress]:
        """Advances every planned request by at least one token, or one chunk of its prompt; or nobody, if all of them
        were abandoned meanwhile.

        Raises:
            BaseException: what interrupted it, or what every request would meet. Everybody waits then, at the last
                token that was whole, and holds nothing.
        """
        began = time.monotonic()
        pacer = self.pacer
        plan = self.scheduler.plan(pacer.num_rounds(drafting=False), pacer.num_rounds(drafting=True))
        progress = self.committing.refused()
        if not len(plan):
            return progress
        self.counters.num_steps += 1
        try:
            result = self._compute(plan)
            if result is None:
                self._isolate(plan, progress)
                return progress
        except StepInterruptedError:  # nothing has happened; the next plan is made without those who have left
            self.abandonment.num_interrupted += 1
            return progress
        progress += self.committing.commit(result)
        self._time(result, progress, time.monotonic() - began)
        return progress

    def _compute(self, plan: StepPlan, *, eagerly: bool = False) -> StepResult | None:
        """None, with nothing changed, if computing the step raised.

        Raises:
            StepInterruptedError: no caller waits for it any more; nothing changed.
        """
        self.abandonment.begin(plan.requests)
        try:
            return self.computation.run_eagerly(plan) if eagerly else self.computation.run(plan)
        except Exception as error:  # out of memory, or something about one of the requests
            self._failure = failure_of(error)
            log.warning("a step of %d requests failed", len(plan), exc_info=error)
            return None
        finally:
            self.abandonment.end()

    def _time(self, result: StepResult, progress: list[RequestProgress], seconds: float) -> None:
        """Takes note of how long a step took."""
        drafted, known = result.drafted, result.plan.num_known
        passes = max(1, max((item.num_new for item in progress), default=1))
        rounds = result.num_rounds if drafted else passes
        prompt_rows = int(known[known > 1].sum()) if known.max() > 1 else 0
        self.scheduler.pacer.record(prompt_rows, seconds / (1 if prompt_rows else rounds))
        self.counters.record_step(prompt_rows + sum(item.num_new for item in progress))
        self.pacer.record(
            result.plan,
            progress,
            seconds,
            num_rounds=rounds,
            drafted=drafted,
            drafter=self.proposer is not None,
        )

    def _isolate(self, plan: StepPlan, progress: list[RequestProgress]) -> None:
        """Repeats a step that failed, without drafts, pass by pass and in parts; ends the requests that fail alone.

        Raises:
            Exception: the same failure on a padding row, so that no request is to blame.
        """
        healthy = False

        def attempt(part: StepPlan) -> bool:
            nonlocal healthy
            result = self._compute(part, eagerly=True)
            if result is None:
                return False
            progress.extend(self.committing.commit(result))
            healthy = True
            return True

        def fail(request: Request) -> None:
            nonlocal healthy
            seat = request.seat
            self.committing.fail(request, f"the engine failed on this request ({self._failure})")
            progress.append(RequestProgress(request, 0))
            if not healthy:
                self.computation.probe(seat)
                healthy = True

        isolate(replace(plan, num_rounds=1), attempt, fail)
