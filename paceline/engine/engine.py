"""One step: plan, propose, assemble, forward, verify, accept, commit, observe. Everything else serves it."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from paceline.cache import CacheManager
from paceline.core.batch import Int32, Verdict, Works
from paceline.core.config import EngineConfig
from paceline.core.request import FinishReason, Group, Request
from paceline.core.seats import Seats
from paceline.engine.compute import RoundStats, StepComputation, StepResult
from paceline.engine.isolation import isolate
from paceline.engine.pacer import StepPacer
from paceline.engine.pooling import pool_hidden
from paceline.engine.recovery import recovering
from paceline.engine.stats import Counters
from paceline.runner import ModelRunner, StepGraphs
from paceline.sampling import Pipeline, selectors
from paceline.scheduling import Scheduler
from paceline.speculation import GuardedProposer, Verifier

log = logging.getLogger(__name__)


class Progress(NamedTuple):
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
        self.pacer = StepPacer(config.num_scheduler_steps)
        self.selector = selectors["sample"]
        self.computation = StepComputation(
            seats=seats,
            runner=runner,
            pipeline=pipeline,
            verifier=verifier,
            proposer=proposer,
            selector=self.selector,
            graphs=StepGraphs(runner, seats, pipeline, enforce_eager=config.enforce_eager),
        )
        scheduler.can_repeat = self.computation.can_repeat
        self._restarting: list[Request] = []
        self.torn = False
        """A change of the books was cut short, and nobody has made them whole yet."""
        self._failure = ""
        """The kind of the exception that a step met last."""

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
                self._fail(request, error)
                self._end(request)

    @property
    def has_work(self) -> bool:
        return self.scheduler.num_unfinished > 0

    def recover(self) -> None:
        """Makes all books anew from the requests themselves; their texts go on as if nothing had happened."""
        self._restarting.clear()
        self.runner.executor.forget()
        self.computation.graphs.forget()
        for request in self.scheduler.restart():
            self.counters.record_finished(request)

    @recovering
    def step(self) -> list[Progress]:
        """Advances every planned request by at least one token, or one chunk of its prompt.

        Raises:
            BaseException: what interrupted it, or what every request would meet. Everybody waits then, at the last
                token that was whole, and holds nothing.
        """
        began = time.monotonic()
        pacer = self.pacer
        works = self.scheduler.plan(pacer.num_rounds(drafting=False), pacer.num_rounds(drafting=True))
        progress = [Progress(request, 0) for request in self._refused()]
        if not len(works):
            return progress
        self.counters.num_steps += 1
        result = self._compute(works)
        if result is None:
            self._isolate(works, progress)
            return progress
        progress += self._commit_step(result)
        self._time(result, progress, time.monotonic() - began)
        return progress

    def _compute(self, works: Works, *, eagerly: bool = False) -> StepResult | None:
        """None, and nothing has happened, if computing the step raised."""
        try:
            return self.computation.run_eagerly(works) if eagerly else self.computation.run(works)
        except Exception as error:  # out of memory, or something about one of the requests
            self._failure = failure_of(error)
            log.warning("a step of %d requests failed", len(works), exc_info=error)
            return None

    def _time(self, result: StepResult, progress: list[Progress], seconds: float) -> None:
        """Takes note of how long a step took."""
        drafted, known = result.drafted, result.works.num_known
        passes = max(1, max((item.num_new for item in progress), default=1))
        rounds = result.num_rounds if drafted else passes
        prompt_rows = int(known[known > 1].sum()) if known.max() > 1 else 0
        self.scheduler.pacer.record(prompt_rows, seconds / (1 if prompt_rows else rounds))
        self.counters.record_step(prompt_rows + sum(item.num_new for item in progress))
        self.pacer.record(
            result.works,
            progress,
            seconds,
            num_rounds=rounds,
            drafted=drafted,
            drafter=self.proposer is not None,
        )

    def _refused(self) -> list[Request]:
        """Requests that could not even be seated."""
        refused, self.scheduler.refused = self.scheduler.refused, []
        for request in refused:
            self.counters.record_finished(request)
        return refused

    def _commit_step(self, result: StepResult) -> list[Progress]:
        """Hands out what a step came to, and commits what it cached."""
        works, verdict = result.works, result.verdict
        progress = self._accept(result)
        self._commit(works, verdict, moved=result.moved)
        if self.proposer is not None:
            self.proposer.observe(works, verdict)
        self._publish(works, verdict)
        self._retire(works)
        return progress

    def _isolate(self, works: Works, progress: list[Progress]) -> None:
        """Repeats a step that failed, without drafts, pass by pass and in parts; ends the requests that fail alone.

        Raises:
            Exception: what a row that is nobody's meets as well: then no request is to blame.
        """
        healthy = False

        def attempt(part: Works) -> bool:
            nonlocal healthy
            result = self._compute(part, eagerly=True)
            if result is None:
                return False
            progress.extend(self._commit_step(result))
            healthy = True
            return True

        def fail(request: Request) -> None:
            nonlocal healthy
            seat = request.seat
            self._fail(request, f"the engine failed on this request ({self._failure})")
            self._end(request)
            progress.append(Progress(request, 0))
            if not healthy:
                self.computation.probe(seat)
                healthy = True

        isolate(replace(works, num_rounds=1), attempt, fail)

    def _accept(self, result: StepResult) -> list[Progress]:
        """Hands each request its tokens, which it may cut short; the verdict shrinks with it."""
        works, sampled, verdict = result.works, result.sampled, result.verdict
        now = time.monotonic()
        for request, place, entry in result.prompt_logprobs:
            assert request.group.prompt_logprobs is not None
            request.group.prompt_logprobs[place] = entry
        progress = []
        if result.batch is not None and result.output is not None:
            progress += [Progress(request, 0) for request in pool_hidden(works, result.batch, result.output)]
        logprobs = result.logprobs or {}
        for number, kept in zip(sampled, self._take(works, sampled, verdict), strict=True):
            request, tokens, path = works.requests[number], verdict.tokens[number], verdict.path[number]
            rounds = result.rounds[number]
            if not tokens:
                self._without_token(request, drafted=rounds[0].num_nodes > 0, banned=number in verdict.dead_ends)
            if kept < len(tokens):
                del tokens[kept:], verdict.rows[number][kept:], path[kept:]
            if number in logprobs:
                request.logprobs += logprobs[number][:kept]
                request.cumulative_logprob += sum(entry.logprob for entry in logprobs[number][:kept])
            self._record_rounds(request, rounds, kept, now)
            progress.append(Progress(request, kept))
        return progress

    def _record_rounds(self, request: Request, rounds: list[RoundStats], kept: int, now: float) -> None:
        """Counts the rounds of a request up to its end."""
        for stats in rounds:
            self.counters.record(request, stats.num_nodes, stats.num_accepted, min(kept, stats.num_tokens), now)
            kept -= stats.num_tokens
            if kept <= 0:
                return

    def _take(self, works: Works, sampled: list[int], verdict: Verdict) -> list[int]:
        """Has the works ``sampled`` and the controls of their seats take in tokens; returns how many each kept."""
        tokens, kept = [verdict.tokens[number] for number in sampled], []
        requests = [works.requests[number] for number in sampled]
        for request, some in zip(requests, tokens, strict=True):
            before = len(request.output_token_ids)
            try:
                kept.append(request.accept(some))
            except Exception as error:  # its text
                del request.output_token_ids[before:]
                self._blame(request, error)
                kept.append(0)
        taken = [some[:count] for some, count in zip(tokens, kept, strict=True)]
        seats, state = works.seats[sampled], self.pipeline.state
        self.seats.append(seats, taken)
        active = state.active[seats]
        for place in np.flatnonzero(active.any(axis=1)).tolist() if active.any() else ():
            try:
                state.commit(int(seats[place]), taken[place])
            except Exception as error:  # one of its controls
                output = requests[place].output_token_ids
                del output[len(output) - kept[place] :]
                self._blame(requests[place], error)
                kept[place] = 0
        return kept

    def _blame(self, request: Request, error: Exception) -> None:
        """Fails a request whose text or controls raised when they took in its tokens."""
        log.warning("request %s failed", request.id, exc_info=error)
        request.watcher = None
        self._fail(request, f"the engine failed on this request ({failure_of(error)})")

    @staticmethod
    def _fail(request: Request, error: str) -> None:
        request.error, request.finish_reason = error, FinishReason.ERROR

    def _end(self, request: Request) -> None:
        self.scheduler.remove(request)
        self.counters.record_finished(request)

    def _without_token(self, request: Request, *, drafted: bool, banned: bool) -> None:
        """Ends a text that may not go on. NaN fails the request; but if there was a draft the NaN may be a drafted
        token's, so it first starts over without one."""
        if banned:
            request.stop_reason = "every token is banned"
            request.finish_reason = FinishReason.STOP
        elif drafted:
            request.group.speculate = False
            self._restarting.append(request)
        else:
            self._fail(request, "the model returned NaN")

    def _commit(self, works: Works, verdict: Verdict, *, moved: bool) -> None:
        """Makes the accepted nodes' K/V contiguous and moves ``num_cached`` up to one short of the known tokens."""
        end = works.end
        if any(verdict.path):
            if not moved:
                self._close_gaps(works.seats, end, verdict.path)
            end = end + np.array([len(path) for path in verdict.path], dtype=np.int32)
        # A request that ended inside its draft has no pending token left; it leaves in this very step.
        self.cache.commit(works.seats, end, self.target_groups)

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
            for group in self.runner.groups:
                group.move(seats[owner], end[owner] + source, end[owner] + target)

    def _publish(self, works: Works, verdict: Verdict) -> None:
        """Lets others share a prompt as soon as a token sampled behind it has proved its K/V finite."""
        if works.num_known.max() == 1:
            return
        for number in np.flatnonzero(works.num_known > 1).tolist():
            if verdict.tokens[number]:
                self.scheduler.publish(works.requests[number])

    def _retire(self, works: Works) -> None:
        for request in [request for request in works.requests if request.finish_reason is not None]:
            self._end(request)
        while self._restarting:
            self.scheduler.preempt(self._restarting.pop())


def failure_of(error: Exception) -> str:
    """What a caller may know of an exception: its kind. Its message may tell of others, and of this machine."""
    return type(error).__name__
