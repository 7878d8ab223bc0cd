"""Knows how calls of several threads share one engine: one thread at a time runs it, for all of them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from types import FrameType

from paceline.core.errors import EngineDeadError, InvalidRequestError
from paceline.core.request import Group
from paceline.engine.engine import Engine

LEAD = "lead"
PATIENCE = 1.0
"""Seconds after which a thread that waits looks whether the one that runs the engine is still there."""


def _nothing() -> None:
    pass


class _ThreadCall:
    """What one thread wants of the engine; it is over once it has been let in and its groups have ended."""

    def __init__(self, groups: Sequence[Group], question: Callable[[], None] | None, seen: Callable[[], None]) -> None:
        self.groups, self.question, self.seen = groups, question, seen
        self.thread, self.wake = threading.current_thread(), SimpleQueue[None]()
        self.entered = self.left = False

    @property
    def over(self) -> bool:
        return self.entered and all(group.finished for group in self.groups)


class Turns:
    """Lets any number of threads call one engine; their requests run in joined batches, as the policy orders them.

    The first to come leads: it runs the steps, for everybody, until its own call is over, and wakes the next.

    No lock is held that an exception could leave locked: each change is one operation of a dictionary or a queue, and
    what an interrupted thread has left behind is put right by its next call, or by whoever leads.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._calls: dict[_ThreadCall, None] = {}
        self._lead: dict[str, _ThreadCall] = {}
        self._door = threading.Lock()
        self.closed = False

    def run(self, groups: Sequence[Group], seen: Callable[[], None] = _nothing) -> None:
        """Returns once all groups have ended; ``seen`` is called on this thread every now and then until they have.

        Raises:
            EngineDeadError: the engine was closed meanwhile.
            BaseException: what a step raised, on the thread that ran it; the groups are then aborted.
        """
        self._attend(_ThreadCall(groups, None, seen))

    def between_steps(self, question: Callable[[], None]) -> None:
        """Has ``question``, which must not raise, answered by whoever leads while no step runs."""
        self._attend(_ThreadCall([], question, _nothing))

    def _attend(self, call: _ThreadCall) -> None:
        for before in [one for one in list(self._calls) if one.thread is call.thread]:
            if _is_running(before):
                raise InvalidRequestError(
                    "the LLM was called from within a call of the same thread, as a signal handler can do\n"
                    "Call it from another thread."
                )
            before.left = True  # an exception came while this thread was leaving
        self._calls[call] = None
        try:
            while not call.over:
                self._check_open()
                if not self._takes_lead(call):
                    self._wait(call)
                    continue
                try:
                    self._drive(call)
                finally:
                    self._lead.pop(LEAD, None)
        finally:
            call.left = True
            try:
                self._abandon(call)
            finally:
                self._leave(call)

    def _check_open(self) -> None:
        if self.closed:
            raise closed()

    def _takes_lead(self, call: _ThreadCall) -> bool:
        """Whether this thread may run the engine now."""
        leader = self._lead.setdefault(LEAD, call)
        if leader is not call and leader.thread is call.thread:  # an exception came while it gave the lead away
            leader = self._lead[LEAD] = call
        return leader is call

    def _wait(self, call: _ThreadCall) -> None:
        call.seen()
        try:
            call.wake.get(timeout=PATIENCE)
        except Empty:
            with self._door:
                leader = self._lead.get(LEAD)
                if leader is not None and not leader.thread.is_alive():
                    self._lead.pop(LEAD, None)

    def _drive(self, call: _ThreadCall) -> None:
        """Runs the engine until the call is over."""
        self._settle()
        with self._engine.abandonment.flag.set_by_signals():
            while not call.over:
                self._check_open()
                self._engine.step()
                call.seen()
                if len(self._calls) > 1:
                    self._settle()

    def _settle(self) -> None:
        """Between two steps: lets calls in, aborts those whose threads have left, wakes those that are over."""
        for call in list(self._calls):
            if call.left:
                for group in call.groups:
                    self._engine.abort(group)
                    self._engine.abandonment.forget(group.id)
                self._calls.pop(call, None)
            elif not call.entered:
                self._enter(call)
            if call.over:
                call.wake.put(None)

    def _enter(self, call: _ThreadCall) -> None:
        if call.question is not None:
            call.question()
        for group in call.groups:
            self._engine.add(group)
        call.entered = True

    def _abandon(self, call: _ThreadCall) -> None:
        """Whoever runs a step that was this call's alone need not run it to its end."""
        for group in call.groups:
            if not group.finished:
                self._engine.abandonment.add(group.id)
        self._engine.abandonment.look()

    def _leave(self, call: _ThreadCall) -> None:
        """Gives back what the call had, and lets another thread run the engine for the others."""
        if call.over:
            self._calls.pop(call, None)
        while any(one.left for one in list(self._calls)) and self._takes_lead(call):
            try:
                self._settle()
            finally:
                self._lead.pop(LEAD, None)
        if LEAD not in self._lead:
            for other in list(self._calls)[:1]:
                other.wake.put(None)


def _is_running(call: _ThreadCall) -> bool:
    """Whether this thread is in the middle of attending to the call, rather than done with it after an exception."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is Turns._attend.__code__ and frame.f_locals.get("call") is call:
            return True
        frame = frame.f_back
    return False


def closed() -> EngineDeadError:
    return EngineDeadError("the LLM was closed\nMake a new LLM, or close this one once every call has returned.")
