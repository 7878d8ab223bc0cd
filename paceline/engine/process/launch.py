"""Knows how a child process is started, told apart from its link, and surely ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import paceline
from paceline.engine.process.link import Link
from paceline.engine.process.messages import Start, encode

CHILD_MODULE = "paceline.engine.process"
_REAP_SECONDS = 5.0
_WAITING = {"GOMP_SPINCOUNT": "1000"}
"""How torch's threads wait for each other: about ten microseconds awake, then asleep.

By default those of GNU OpenMP stay awake for milliseconds. Beside a process that computes on the same cores, as the
parent does, a thread then waits awake for one that has no core: with two threads on a busy machine of two cores a step
took four to six times as long. 1000 is OpenMP's own number where it knows of more threads than cores.
"""


class ChildProcess:
    """A process that loads a model and runs an engine, and the parent's end of the link to it."""

    def __init__(self, start: Start) -> None:
        mine, its = socket.socketpair()
        with its:
            try:
                self._process = _spawn(its)
            except BaseException:
                mine.close()
                raise
        self.link = Link(mine)
        self.link.send(encode(start))

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()

    def end(self, timeout: float) -> None:
        """Hangs up, which ends the child, and kills it if it still runs after ``timeout`` seconds."""
        self.link.hang_up()
        self._wait(timeout)

    def reap(self) -> str:
        """Waits for the end of a child whose link has ended, and tells how it ended."""
        self.link.close()
        code = self._wait(_REAP_SECONDS)
        if code >= 0:
            return f"ended with exit code {code}"
        return f"was killed by {signal.Signals(-code).name}" if -code in set(signal.Signals) else "was killed"

    def _wait(self, timeout: float) -> int:
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _spawn(end: socket.socket) -> subprocess.Popen[bytes]:
    # The same paceline as this one, wherever it lies and whatever the working directory holds.
    package = str(Path(paceline.__file__).resolve().parents[1])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(  # noqa: S603 (our own interpreter and arguments)
        [sys.executable, "-P", "-m", CHILD_MODULE, str(end.fileno())],
        env=_WAITING | os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        pass_fds=[end.fileno()],
        stdin=subprocess.DEVNULL,
        # What is printed by accident must not mix with the parent's own output.
        stdout=subprocess.DEVNULL if sys.stderr is None else 2,
        stderr=subprocess.DEVNULL if sys.stderr is None else None,
        # Out of the terminal's foreground group: Ctrl-C is the parent's to act on.
        process_group=0,
    )
