"""Knows how a call's updates wait for a reader that is slower than the engine: joined, so that few ever wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any

from paceline.core.outputs import CompletionDelta, StreamUpdate

Emit = Callable[[StreamUpdate | Exception], None]
"""Takes one call's updates in their order, and an exception in place of those that will not come."""

MOST_WAITING = 256
"""Updates that wait one by one before they are joined into one."""
_GROWING = ("text", "token_ids", "logprobs", "token_drafted", "token_times")
_LATEST = tuple(item.name for item in fields(CompletionDelta) if item.name not in ("index", *_GROWING))
_OF_THE_CALL = tuple(item.name for item in fields(StreamUpdate) if item.name not in ("request_id", "deltas"))


def join_updates(updates: Sequence[StreamUpdate]) -> StreamUpdate:
    """One update that tells a reader what these, of one call and in their order, tell it one after another."""
    if len(updates) == 1:
        return updates[0]
    by_answer: dict[int, list[CompletionDelta]] = {}
    for update in updates:
        for delta in update.deltas:
            by_answer.setdefault(delta.index, []).append(delta)
    of_the_call = {name: _latest(updates, name) for name in _OF_THE_CALL}
    return StreamUpdate(updates[0].request_id, [_join_deltas(deltas) for deltas in by_answer.values()], **of_the_call)


def _latest(items: Sequence[Any], name: str) -> Any:
    return next((value for value in (getattr(item, name) for item in reversed(items)) if value is not None), None)


def _join_deltas(deltas: list[CompletionDelta]) -> CompletionDelta:
    if len(deltas) == 1:
        return deltas[0]
    joined: dict[str, Any] = {"text": "".join(delta.text for delta in deltas)}
    for name in _GROWING[1:]:
        parts = [part for part in (getattr(delta, name) for delta in deltas) if part is not None]
        joined[name] = [item for part in parts for item in part] if parts else None
    for name in _LATEST:
        joined[name] = _latest(deltas, name)
    return CompletionDelta(index=deltas[0].index, **joined)


class WaitingUpdates:
    """A bounded number of one call's updates; what they hold grows with the answers only. Not thread-safe."""

    def __init__(self) -> None:
        self._updates: list[StreamUpdate] = []

    def __len__(self) -> int:
        return len(self._updates)

    def put(self, update: StreamUpdate) -> None:
        self._updates.append(update)
        if len(self._updates) > MOST_WAITING:
            self._updates = [join_updates(self._updates)]

    def take(self) -> StreamUpdate:
        """All that wait, as one."""
        updates, self._updates = self._updates, []
        return join_updates(updates)


class UpdateStream:
    """Carries one call's updates from the thread that makes them to the event loop that reads them."""

    def __init__(self) -> None:
        """Belongs to the event loop that runs now."""
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._lock = threading.Lock()
        self._waiting = WaitingUpdates()
        self._error: Exception | None = None

    def put(self, item: StreamUpdate | Exception) -> None:
        """Never waits; may be called from any thread. Nothing comes after an exception."""
        with self._lock:
            wakes = not self._waiting and self._error is None
            if isinstance(item, Exception):
                self._error = item
            else:
                self._waiting.put(item)
        if wakes:
            with suppress(RuntimeError):  # the reader's event loop was closed: its call is of no use to anybody
                self._loop.call_soon_threadsafe(self._arrived.set)

    async def take(self) -> StreamUpdate:
        """Everything since the last call as one update; waits for the first.

        Raises:
            Exception: what was put, once every update before it was taken.
        """
        await self._arrived.wait()
        with self._lock:
            if self._waiting:
                if self._error is None:
                    self._arrived.clear()
                return self._waiting.take()
            assert self._error is not None
            raise self._error
