"""The child's life as the parent sees it: started, heard, missed, started again a few times, and ended."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from msgspec.structs import replace

from paceline.core.errors import CheckpointError, ConfigError, EngineDeadError, PacelineError
from paceline.engine.facts import EngineFacts
from paceline.engine.process.launch import ChildProcess
from paceline.engine.process.link import LinkError
from paceline.engine.process.messages import Beat, Loaded, NotLoaded, Report, Start, decode_report
from paceline.engine.process.restarts import RestartPolicy, Restarts

log = logging.getLogger(__name__)

LOADING_ERRORS = {kind.__name__: kind for kind in (ConfigError, CheckpointError)}
_KILLED_WAIT = 5.0
_LOADING_FACTOR = 2.0
"""A child may take so many times as long to load again as one took before, and twice as long at each new attempt."""


class Supervisor:
    """Keeps one child running on a thread of its own, which also receives what the child reports."""

    def __init__(
        self,
        start: Start,
        *,
        stall_seconds: float,
        kill_seconds: float | None,
        restarts: RestartPolicy,
        deliver: Callable[[Report], None],
        lost: Callable[[EngineDeadError], None],
    ) -> None:
        self.stall_seconds, self.kill_seconds = stall_seconds, kill_seconds
        self.num_restarts = 0
        self._start, self._restarts, self._deliver, self._lost = start, Restarts(restarts), deliver, lost
        self._lock = threading.Lock()
        """Guards ``_child``: none is started once ``_closing`` is set."""
        self._child: ChildProcess | None = None
        self._serving = False
        self._closing = threading.Event()
        self._cause = "the engine has not been started"
        self._retry_after: int | None = None
        self._heard = self._progressed = 0.0
        self._load_seconds = 0.0
        """The longest that a child took to load."""
        self._num_started = 0
        self._num_late = 0
        """Children in a row that were killed as they loaded."""
        self._first: Future[EngineFacts] = Future()
        self._thread = threading.Thread(target=self._run, name="paceline-supervisor", daemon=True)

    def start(self) -> EngineFacts:
        """Starts the first child and waits until it has loaded the model.

        Raises:
            ConfigError, CheckpointError: as ``LLM`` would.
            EngineDeadError: the child ended while it was loading.
        """
        # The thread that starts a child must outlive it: Linux takes that thread's end for the parent's.
        self._thread.start()
        return self._first.result()

    @property
    def alive(self) -> bool:
        return self._serving

    @property
    def stalled_seconds(self) -> float:
        """For how long the child has given no sign of life, or its current step has been running."""
        return time.monotonic() - min(self._heard, self._progressed) if self._serving else 0.0

    @property
    def stalled(self) -> bool:
        return self.stalled_seconds > self.stall_seconds

    @property
    def pid(self) -> int | None:
        child = self._child
        return None if child is None else child.pid

    def dead(self) -> EngineDeadError:
        """What a call is told that finds no engine."""
        return EngineDeadError(self._cause, retry_after=self._retry_after)

    def send(self, frame: bytes) -> bool:
        """False if there is no child that would get it."""
        child = self._child
        if child is None or not self._serving:
            return False
        child.link.send(frame)
        return True

    def close(self, timeout: float) -> None:
        """Ends the child, by force if it has not ended after ``timeout`` seconds, and the thread."""
        self._closing.set()
        with self._lock:
            child = self._child
        if child is not None:
            child.end(timeout)
        if self._thread.ident is not None:
            self._thread.join(_KILLED_WAIT)

    def _run(self) -> None:
        try:
            self._first.set_result(self._launch())
        except BaseException as error:
            self._first.set_exception(error)
            return
        while not self._closing.is_set():
            self._attend()
            if not self._revive():
                return

    def _launch(self) -> EngineFacts:
        """A child that has loaded the model; raises what keeps one from that."""
        began = time.monotonic()
        with self._lock:
            if self._closing.is_set():
                raise EngineDeadError("the engine was closed")
            child = self._child = ChildProcess(replace(self._start, num_before=self._num_started))
            self._num_started += 1
        try:
            facts = self._await_loaded(child)
        except BaseException:
            child.reap()
            raise
        now = time.monotonic()
        self._heard = self._progressed = now
        self._load_seconds, self._num_late = max(self._load_seconds, now - began), 0
        self._retry_after = math.ceil(now - began + self._restarts.policy.first_delay)
        self._serving = True
        return facts

    @property
    def _most_load_seconds(self) -> float | None:
        """For how long a child may load; None, where that is anybody's guess or nothing is ever killed, is for ever."""
        if self.kill_seconds is None or not self._load_seconds:
            return None
        return self.kill_seconds + _LOADING_FACTOR * 2.0**self._num_late * self._load_seconds

    def _await_loaded(self, child: ChildProcess) -> EngineFacts:
        most = self._most_load_seconds
        try:
            frames = child.link.receive(most)
            if not frames:
                self._num_late += 1
                child.kill()
                raise EngineDeadError(f"the engine was killed: it was still loading the model after {most:.0f} s")
            first = decode_report(frames[0])
        except EOFError:
            raise EngineDeadError(
                f"the engine {child.reap()} while it was loading the model\nWhat it wrote before tells why."
            ) from None
        if isinstance(first, NotLoaded):
            raise LOADING_ERRORS.get(first.kind, PacelineError)(first.message)
        if not isinstance(first, Loaded):
            raise LinkError("the engine's process said something before it had loaded the model")
        return first.facts

    def _attend(self) -> None:
        """Hears the child until it is gone; then every call that waited for it learns that at once."""
        child = self._child
        assert child is not None
        self._cause = "the engine died and is being restarted\nTry again in a moment."
        broken = None
        try:
            while True:
                self._hear(child)
        except EOFError:
            pass
        except Exception as error:  # a bug must not leave a child that nobody hears
            broken = error
        self._serving = False
        self._lost(self.dead() if not self._closing.is_set() else EngineDeadError("the engine was closed"))
        how = child.reap()
        if not self._closing.is_set():
            log.error("the engine %s", how if broken is None else f"was ended: {broken}")

    def _hear(self, child: ChildProcess) -> None:
        frames = child.link.receive(timeout=1.0)
        now = time.monotonic()
        if frames:
            self._heard = now
        for frame in frames:
            report = decode_report(frame)
            if isinstance(report, Beat):
                self._progressed = now - report.busy_seconds
            else:
                self._deliver(report)
        if self.kill_seconds is not None and self.stalled_seconds > self.kill_seconds:
            log.error("the engine has been stuck for %.0f s and is killed", self.stalled_seconds)
            child.kill()

    def _revive(self) -> bool:
        """Starts another child, as often as is allowed; False once that is not, or this is being closed."""
        while (delay := self._restarts.next_delay()) is not None:
            if self._closing.wait(delay):
                break
            try:
                self._launch()
            except Exception as error:  # whatever it is, somebody must try again, or say that nobody does
                log.error("the engine could not be restarted: %s", error)
                continue
            self.num_restarts += 1
            log.warning("the engine was restarted")
            return True
        self._retry_after = None
        self._cause = "the engine has stopped\nRestart the service; its log holds the cause."
        if not self._closing.is_set():
            policy = self._restarts.policy
            log.error(
                "the engine died more than %d times within %.0f s and is not restarted again",
                policy.max_restarts,
                policy.window_seconds,
            )
        return False
