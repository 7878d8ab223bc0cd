"""The thread that runs the engine for asynchronous callers: requests in, stream updates out, aborts at any time."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from paceline.core.call import CallOptions
from paceline.core.errors import EngineDeadError, InvalidRequestError
from paceline.core.outputs import StreamUpdate
from paceline.core.params import SamplingParams
from paceline.core.request import Group, Request
from paceline.engine.intake import DEFAULT_OPTIONS
from paceline.engine.llm import LLM
from paceline.engine.report import engine_stats
from paceline.engine.results import delta_of
from paceline.engine.stats import metrics_of

log = logging.getLogger(__name__)

STALL_SECONDS = 60.0
"""A step that takes longer than this is taken for stuck."""
Emit = Callable[[StreamUpdate | Exception], None]


class EngineWorker:
    """Owns an ``LLM`` on a thread of its own; every public method may be called from any event loop."""

    restarts = 0

    def __init__(self, llm: LLM, *, stall_seconds: float = STALL_SECONDS) -> None:
        self.llm, self.stall_seconds = llm, stall_seconds
        self.model_name, self.tokenizer, self.max_model_len = llm.model_name, llm.tokenizer, llm.max_model_len
        self.vocab_size = llm.engine.runner.model.config.vocab_size
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._streams: dict[str, tuple[Group, Emit]] = {}
        self._lock = threading.Lock()
        self._stopped = False
        self._door = threading.Lock()
        """Guards ``_stopped``: no command comes in after the last were carried out."""
        self._busy_since: float | None = None
        """time.monotonic() when the step now running began; None between steps, as while there is nothing to do."""
        self._thread = threading.Thread(target=self._run, name="paceline-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return not self._stopped

    @property
    def stalled(self) -> bool:
        since = self._busy_since
        return self.alive and since is not None and time.monotonic() - since > self.stall_seconds

    @property
    def ready(self) -> bool:
        return self.alive and not self.stalled

    def generate(
        self,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        request_id: str,
        options: CallOptions = DEFAULT_OPTIONS,
    ) -> AsyncIterator[StreamUpdate]:
        """Streams a call's updates; closing the iterator early aborts the call.

        Raises:
            InvalidRequestError: at once, if the call is invalid.
            EngineDeadError: at once or while streaming, if the engine has stopped.
        """
        if not self.alive:
            raise _dead()
        tokens = self.llm.intake.encode(prompt_token_ids)
        group = self.llm.intake.group(tokens, params, request_id=request_id, options=options)
        return self._stream(group)

    async def _stream(self, group: Group) -> AsyncIterator[StreamUpdate]:
        loop = asyncio.get_running_loop()
        updates: asyncio.Queue[StreamUpdate | Exception] = asyncio.Queue()

        def emit(update: StreamUpdate | Exception) -> None:
            with suppress(RuntimeError):  # the reader's event loop was closed: its call is of no use to anybody
                loop.call_soon_threadsafe(updates.put_nowait, update)

        if not self._submit(lambda: self._begin(group, emit)):
            raise _dead()
        finished = False
        try:
            while not finished:
                update = await updates.get()
                if isinstance(update, Exception):
                    finished = True
                    raise update
                finished = update.finished
                yield update
        finally:
            if not finished:
                self.abort(group.id)

    def abort(self, request_id: str) -> None:
        """Ends a call, if it still runs, and gives back its pages before the next step."""
        self._submit(lambda: self._abort(request_id))

    def stats(self) -> dict[str, Any]:
        with self._lock:
            return engine_stats(self.llm.engine)

    def close(self, timeout: float = 10.0) -> None:
        """Aborts what runs and joins the thread; waits at most ``timeout`` seconds."""
        self._submit(None)
        self._thread.join(timeout)

    def _submit(self, command: Callable[[], None] | None) -> bool:
        """Hands a command to the thread; False if that has stopped."""
        with self._door:
            if not self._stopped:
                self._commands.put(command)
            return not self._stopped

    def _run(self) -> None:
        try:
            while self._obey(block=not self.llm.engine.has_work):
                self._busy_since = time.monotonic()
                with self._lock:
                    progress = self.llm.engine.step()
                touched: dict[str, list[tuple[Request, int]]] = {}
                for item in progress:
                    touched.setdefault(item.request.group.id, []).append((item.request, item.num_new))
                for request_id, members in touched.items():
                    self._report(request_id, members)
                self._busy_since = None
        except Exception:
            log.exception("the engine stopped")
        finally:
            self._stop()

    def _obey(self, *, block: bool) -> bool:
        """Carries out what was asked since the last step; false once told to stop."""
        while True:
            try:
                command = self._commands.get(block=block)
            except queue.Empty:
                return True
            if command is None:
                return False
            with self._lock:
                command()
            block = False

    def _begin(self, group: Group, emit: Emit) -> None:
        if group.id in self._streams:
            emit(InvalidRequestError(f"request_id must be unique, {group.id!r} is running", param="request_id"))
            return
        self._streams[group.id] = (group, emit)
        self.llm.engine.add(group)

    def _abort(self, request_id: str) -> None:
        if request_id in self._streams:
            group, emit = self._streams.pop(request_id)
            ended = [request for request in group.members if not request.finished]
            self.llm.engine.abort(group)
            emit(StreamUpdate(request_id, [delta_of(request, 0) for request in ended], metrics_of(group)))

    def _report(self, request_id: str, members: list[tuple[Request, int]]) -> None:
        group, emit = self._streams[request_id]
        deltas = [delta_of(request, num_new) for request, num_new in members]
        if group.finished:
            del self._streams[request_id]
        emit(StreamUpdate(request_id, deltas, metrics_of(group) if group.finished else None))

    def _stop(self) -> None:
        """Lets no more commands in; ends every stream, also those whose command is still in the queue."""
        with self._door:
            self._stopped = True
        while not self._commands.empty():
            command = self._commands.get()
            if command is not None:
                command()
        for group, _ in self._streams.values():
            for request in group.members:
                request.error = "the engine stopped"
            with suppress(Exception):  # the engine may have stopped half-way; the others' pages still come back
                self.llm.engine.abort(group)
        for _, emit in self._streams.values():
            emit(_dead())
        self._streams.clear()


def _dead() -> EngineDeadError:
    return EngineDeadError("the engine has stopped\nRestart the service; its log holds the cause.")
