"""The child's updates on their way out: as many as wait go in one write, joined per call while the link is full."""

from __future__ import annotations

import threading

from paceline.core.errors import InvalidRequestError
from paceline.core.outputs import StreamUpdate
from paceline.engine.process.link import FrameTooLargeError, Link
from paceline.engine.process.messages import Refused, Updated, encode
from paceline.engine.updates import WaitingUpdates


class Outbox:
    """Collects what calls have to tell; any thread may put and flush."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[int, WaitingUpdates] = {}
        self._refused: list[Refused] = []
        self.link: Link | None = None

    def put(self, call: int, item: StreamUpdate | Exception) -> None:
        """Keeps an update until the next flush."""
        with self._lock:
            if isinstance(item, StreamUpdate):
                self._waiting.setdefault(call, WaitingUpdates()).put(item)
            else:
                self._refused.append(refusal(call, item))

    def flush(self) -> None:
        """Sends what waits, unless the link is full; then it must be called again once that is drained."""
        with self._lock:
            if self.link is None or self.link.full or not (self._waiting or self._refused):
                return
            frames = [self._frame(call, updates.take()) for call, updates in self._waiting.items()]
            frames += [encode(refused) for refused in self._refused]
            self._waiting.clear()
            self._refused.clear()
            self.link.send(b"".join(frames))

    def _frame(self, call: int, update: StreamUpdate) -> bytes:
        try:
            return encode(Updated(call, update))
        except FrameTooLargeError as error:
            return encode(Refused(call, str(error), invalid=False))


def refusal(call: int, error: Exception) -> Refused:
    """How a call's error travels."""
    if isinstance(error, InvalidRequestError):
        return Refused(call, str(error), error.param, error.code)
    return Refused(call, "the engine could not take this call", invalid=False)
