"""Knows which calls nobody waits for any more, and cuts a step short once all its requests are of such calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from paceline.core.interruption import Interruption, current
from paceline.core.request import Request


class Abandonment:
    """One thread runs steps, between ``begin`` and ``end``; every other method may be called from any thread.

    Each side writes what it knows before it reads what the other has written, so that no abandoned step is overlooked.
    One that is cut short in vain, since it was another step's requests that were abandoned, is repeated.
    """

    def __init__(self) -> None:
        self.flag = Interruption()
        self._running: Sequence[Request] = ()
        self._abandoned: set[str] = set()
        self._halts: set[object] = set()
        """While there is one, no step is wanted."""
        self.num_interrupted = 0
        """Steps."""

    def add(self, group_id: str) -> None:
        """No caller waits for a call. ``look`` comes once whoever runs steps is bound to end and ``forget`` it."""
        self._abandoned.add(group_id)

    def forget(self, group_id: str) -> None:
        """The call has ended."""
        self._abandoned.discard(group_id)

    def everything(self) -> None:
        """No step is wanted until whoever runs steps has ended: ``ended``."""
        self._halts.add("until the end")
        self.look()

    def ended(self) -> None:
        """Others may run steps again."""
        self._halts.discard("until the end")

    @contextmanager
    def nothing_runs(self) -> Iterator[None]:
        """No step is wanted while this lasts."""
        halt = object()
        self._halts.add(halt)
        self.look()
        try:
            yield
        finally:
            self._halts.discard(halt)

    def look(self) -> None:
        """Cuts short the step that runs, if nobody waits for it."""
        running = self._running
        if running and (self._halts or all(request.group.id in self._abandoned for request in running)):
            self.flag.set()

    def begin(self, requests: Sequence[Request]) -> None:
        """A step of these requests is computed from now on, on this thread."""
        self.flag.clear()
        self._running, current.flag = requests, self.flag
        if self._abandoned or self._halts:
            self.look()

    def end(self) -> None:
        """It is computed no further."""
        self._running, current.flag = (), None
