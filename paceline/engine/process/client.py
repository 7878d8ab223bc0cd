"""The engine in a process of its own, for the asynchronous callers of this one: as ``EngineWorker``, over a link."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WaitedTooLongError
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from paceline.core.call import CallOptions, checked_tokens
from paceline.core.config import SpeculativeConfig
from paceline.core.errors import EngineDeadError, InvalidRequestError, PacelineError
from paceline.core.outputs import StreamUpdate
from paceline.core.params import SamplingParams
from paceline.engine.patience import STALL_SECONDS, STATS_SECONDS, stalled
from paceline.engine.process.link import FrameTooLargeError
from paceline.engine.process.messages import (
    Abort,
    AskStats,
    CallEncoder,
    Generate,
    Refused,
    Report,
    Start,
    StatsTold,
    Updated,
    encode,
)
from paceline.engine.process.restarts import RestartPolicy
from paceline.engine.process.supervisor import Supervisor
from paceline.engine.updates import UpdateStream
from paceline.text import Tokenizer, bad_word_ids

BEAT_SECONDS = 1.0


class EngineProcess:
    """Runs an ``LLM`` in a child process; every public method may be called from any event loop.

    Args:
        model, speculative_config, options: as ``LLM`` takes them.
        stall_seconds: a step that takes longer is taken for stuck.
        kill_seconds: a child whose step, or silence, takes longer is killed and restarted, and so is one that takes
            as much longer to load again than it took at first; None never does that.
        restart_policy: how often a child that died is started again.

    Raises:
        ConfigError, CheckpointError: as ``LLM``.
        EngineDeadError: the child ended while it was loading.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        speculative_config: Mapping[str, Any] | SpeculativeConfig | str | None = "auto",
        stall_seconds: float = STALL_SECONDS,
        kill_seconds: float | None = None,
        restart_policy: RestartPolicy | None = None,
        **options: Any,
    ) -> None:
        soonest = stall_seconds if kill_seconds is None else min(stall_seconds, kill_seconds)
        beat_seconds = min(BEAT_SECONDS, soonest / 4)
        self._lock = threading.Lock()
        self._numbers, self._encoder = itertools.count(), CallEncoder()
        self._streams: dict[int, UpdateStream] = {}
        self._running: set[str] = set()
        self._asked: dict[int, Future[dict[str, Any]]] = {}
        self._supervisor = Supervisor(
            _start(model, speculative_config, options, beat_seconds=beat_seconds),
            stall_seconds=stall_seconds,
            kill_seconds=kill_seconds,
            restarts=restart_policy or RestartPolicy(),
            deliver=self._deliver,
            lost=self._end_all,
        )
        try:
            self.facts = self._supervisor.start()
        except BaseException:
            self.close(timeout=0)
            raise
        self.model_name, self.max_model_len = self.facts.model_name, self.facts.max_model_len
        self.vocab_size, self.context_overflow = self.facts.vocab_size, self.facts.context_overflow
        self.tokenizer = Tokenizer.try_load(Path(self.facts.model_path))

    @property
    def alive(self) -> bool:
        return self._supervisor.alive

    @property
    def stalled(self) -> bool:
        return self._supervisor.stalled

    @property
    def ready(self) -> bool:
        return self.alive and not self.stalled

    @property
    def restarts(self) -> int:
        return self._supervisor.num_restarts

    @property
    def pid(self) -> int | None:
        """Of the child that runs or was the last to run."""
        return self._supervisor.pid

    def generate(
        self,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        request_id: str,
        options: CallOptions = CallOptions(),  # noqa: B008 (it is frozen)
    ) -> AsyncGenerator[StreamUpdate]:
        """Streams a call's updates; closing the iterator early aborts the call.

        Raises:
            InvalidRequestError: at once or before the first update, if the call is invalid.
            EngineDeadError: at once or while streaming, if the child has died.
        """
        if not self.alive:
            raise self._supervisor.dead()
        return self._stream(checked_tokens(prompt_token_ids, self.vocab_size), params, request_id, options)

    async def _stream(
        self, tokens: list[int], params: SamplingParams, request_id: str, options: CallOptions
    ) -> AsyncGenerator[StreamUpdate]:
        updates = UpdateStream()
        number = next(self._numbers)
        if params.bad_words and self.tokenizer is not None and options.bad_words_token_ids is None:
            # The child, whose one thread takes everybody's calls, has no text to read.
            spelled = await asyncio.to_thread(bad_word_ids, self.tokenizer, params.bad_words)
            options = replace(options, bad_words_token_ids=spelled)
        frame = self._frame_of(Generate(number, request_id, tokens, params, options))
        with self._lock:
            if request_id in self._running:
                raise InvalidRequestError(f"request_id must be unique, {request_id!r} is running", param="request_id")
            self._running.add(request_id)
            self._streams[number] = updates
        over = False
        try:
            if not self._supervisor.send(frame):
                raise self._supervisor.dead()
            while not over:
                update = await updates.take()
                over = update.finished
                yield update
        finally:
            with self._lock:
                del self._streams[number]
                self._running.remove(request_id)
                if not over:  # under the lock, so that the id's next call comes behind it
                    self.abort(request_id)

    def _frame_of(self, call: Generate) -> bytes:
        try:
            return self._encoder.encode(call)
        except FrameTooLargeError as error:
            raise InvalidRequestError(f"the call is too long: {error}", param="prompt") from None
        except (TypeError, OverflowError) as error:
            raise InvalidRequestError(f"the call has a value that cannot be sent: {error}") from None
        except UnicodeEncodeError:
            raise InvalidRequestError("stop and bad_words must be valid Unicode text", param="stop") from None

    def abort(self, request_id: str) -> None:
        """Ends a call, if it still runs, and gives back its pages before the next step."""
        self._supervisor.send(encode(Abort(request_id)))

    def stats(self) -> dict[str, Any]:
        """Counters and gauges; waits for the step that runs, for at most ``STATS_SECONDS``.

        Raises:
            EngineStalledError: the child is stuck.
            EngineDeadError: there is no child.
        """
        number, found = next(self._numbers), Future[dict[str, Any]]()
        with self._lock:
            self._asked[number] = found
        try:
            if not self._supervisor.send(encode(AskStats(number))):
                raise self._supervisor.dead()
            return found.result(min(self._supervisor.stall_seconds, STATS_SECONDS))
        except WaitedTooLongError:
            raise stalled() from None
        finally:
            with self._lock:
                del self._asked[number]

    def close(self, timeout: float = 10.0) -> None:
        """Aborts what runs and ends the child, by force if it still runs after ``timeout`` seconds."""
        self._supervisor.close(timeout)

    def _deliver(self, report: Report) -> None:
        if isinstance(report, Updated | Refused):
            with self._lock:
                stream = self._streams.get(report.call)
            if stream is not None:
                stream.put(report.update if isinstance(report, Updated) else _error_of(report))
        elif isinstance(report, StatsTold):
            with self._lock:
                found = self._asked.get(report.number)
            if found is not None:
                found.set_result(report.stats)

    def _end_all(self, error: EngineDeadError) -> None:
        with self._lock:
            streams, asked = list(self._streams.values()), list(self._asked.values())
        for stream in streams:
            # One each: a traceback is written into the exception that is raised.
            stream.put(EngineDeadError(str(error), retry_after=error.retry_after))
        for found in asked:
            if not found.done():
                found.set_exception(error)


def _start(model: str | Path | None, speculative: Any, options: dict[str, Any], *, beat_seconds: float) -> Start:
    if isinstance(speculative, SpeculativeConfig):
        speculative = asdict(speculative)
    elif isinstance(speculative, Mapping):
        speculative = {name: _plain(value) for name, value in speculative.items()}
    return Start(
        model=None if model is None else str(model),
        speculative_config=speculative,
        options={name: _plain(value) for name, value in options.items()},
        beat_seconds=beat_seconds,
    )


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _error_of(refused: Refused) -> PacelineError:
    if refused.invalid:
        return InvalidRequestError(refused.message, param=refused.param, code=refused.code)
    return PacelineError(refused.message)
