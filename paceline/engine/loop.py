"""The loop that runs the engine for many callers: commands in between steps, updates out after each step."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from paceline.core.call import CallOptions
from paceline.core.errors import EngineDeadError, InvalidRequestError
from paceline.core.outputs import CompletionDelta, StreamUpdate
from paceline.core.params import SamplingParams
from paceline.core.request import FinishReason, Group, Request
from paceline.engine.commit import failure_of
from paceline.engine.idle_check import IdleCheck
from paceline.engine.llm import LLM
from paceline.engine.patience import STALL_SECONDS
from paceline.engine.report import engine_stats
from paceline.engine.results import update_of
from paceline.engine.stats import metrics_of
from paceline.engine.updates import Emit

log = logging.getLogger(__name__)

Command = Callable[[], None]


def _nothing() -> None:
    pass


class EngineLoop:
    """Runs an ``LLM`` on the thread that calls ``run``; every other method may be called from any thread."""

    def __init__(
        self, llm: LLM, *, stall_seconds: float = STALL_SECONDS, after_step: Callable[[], None] = _nothing
    ) -> None:
        self.llm, self.stall_seconds, self._after_step = llm, stall_seconds, after_step
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._streams: dict[str, tuple[Group, Emit]] = {}
        self._busy_since: float | None = None
        """time.monotonic() when the turn now running began; None while there is nothing to do."""
        self._idle_check = IdleCheck(llm.engine)
        self._stopped = False
        self._door = threading.Lock()
        """Guards ``_stopped``: no command comes in after the last were carried out."""

    @property
    def alive(self) -> bool:
        return not self._stopped

    @property
    def busy_seconds(self) -> float:
        """For how long the current step has been running; 0 without work."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def stalled(self) -> bool:
        return self.alive and self.busy_seconds > self.stall_seconds

    def check(self, prompt: list[int], params: SamplingParams, *, request_id: str, options: CallOptions) -> Group:
        """A call ready to be submitted.

        Raises:
            InvalidRequestError: naming the field, and what would be accepted.
        """
        tokens = self.llm.input_processor.encode(prompt)
        return self.llm.input_processor.group(tokens, params, request_id=request_id, options=options)

    def submit(self, group: Group, emit: Emit) -> None:
        """Begins a call; ``emit`` is called on the loop's thread, and gets EngineDeadError if that has stopped."""
        if not self.soon(lambda: self._begin(group, emit)):
            emit(dead())

    def abort(self, request_id: str) -> None:
        """Ends a call, if it still runs, and gives back its pages before the next step; its own step ends early."""
        abandonment = self.llm.engine.abandonment
        abandonment.add(request_id)
        if self.soon(lambda: self._abort(request_id)):
            abandonment.look()
        else:
            abandonment.forget(request_id)

    def stop(self) -> None:
        """Lets ``run`` return; the current step ends early."""
        abandonment = self.llm.engine.abandonment
        abandonment.everything()
        if not self.soon(None):
            abandonment.ended()

    def stats(self) -> dict[str, Any]:
        """Plain numbers; only between steps, as in a command given to ``soon``."""
        return engine_stats(self.llm.engine)

    def soon(self, command: Command | None) -> bool:
        """Has a command carried out between two steps; False if the loop has stopped."""
        with self._door:
            if not self._stopped:
                self._commands.put(command)
            return not self._stopped

    def run(self) -> None:
        """Returns once told to stop or when a step raised; every stream has ended by then."""
        try:
            while self._obey():
                self._step()
        except Exception:
            log.exception("the engine stopped")
        finally:
            self._stop()
            self.llm.engine.abandonment.ended()

    def _obey(self) -> bool:
        """Carries out what was asked since the last step, and waits for it without work; false once told to stop."""
        waits = not self.llm.engine.has_work
        if waits and self._busy_since is not None and self._commands.empty():
            self._idle_check.run()
        self._busy_since = None if waits else time.monotonic()
        while True:
            try:
                command = self._commands.get(block=waits)
            except queue.Empty:
                return True
            if command is None:
                return False
            if waits:
                self._busy_since, waits = time.monotonic(), False
            command()

    def _step(self) -> None:
        touched: dict[str, list[tuple[Request, int]]] = {}
        for item in self.llm.engine.step():
            touched.setdefault(item.request.group.id, []).append((item.request, item.num_new))
        for request_id, members in touched.items():
            self._report(request_id, members)
        self._after_step()

    def _begin(self, group: Group, emit: Emit) -> None:
        if group.id in self._streams:
            emit(InvalidRequestError(f"request_id must be unique, {group.id!r} is running", param="request_id"))
            return
        self._streams[group.id] = (group, emit)
        self.llm.engine.add(group)

    def _abort(self, request_id: str) -> None:
        self.llm.engine.abandonment.forget(request_id)
        if request_id in self._streams:
            group, emit = self._streams.pop(request_id)
            ended = [request for request in group.members if not request.finished]
            self.llm.engine.abort(group)
            emit(self._update(group, [(request, 0) for request in ended]))

    def _report(self, request_id: str, members: list[tuple[Request, int]]) -> None:
        group, emit = self._streams[request_id]
        update = self._update(group, members)
        if group.finished:
            del self._streams[request_id]
        emit(update)

    def _update(self, group: Group, members: list[tuple[Request, int]]) -> StreamUpdate:
        try:
            return update_of(group, members, self.llm.engine.selector)
        except Exception as error:  # its text cannot be told: its own fault, and nobody else's
            log.warning("request %s failed", group.id, exc_info=error)
            return self._broken(group, failure_of(error))

    def _broken(self, group: Group, kind: str) -> StreamUpdate:
        """The end of a call whose updates cannot be made."""
        self.llm.engine.fail(group, f"the engine failed on this request ({kind})")
        deltas = [
            CompletionDelta(member.sample_index, "", [], finish_reason=str(FinishReason.ERROR), error=member.error)
            for member in group.members
        ]
        return StreamUpdate(group.id, deltas, metrics_of(group))

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
            emit(dead())
        self._streams.clear()


def dead() -> EngineDeadError:
    return EngineDeadError("the engine has stopped\nRestart the service; its log holds the cause.")
