"""Knows how a template is rendered in a process of its own, which is killed when it takes too long."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from paceline.templates.frames import receive, send

START_SECONDS = 30.0
KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "HOME")
"""The child sees no keys that the environment may hold."""


class RenderingError(Exception):
    """An operation of the template failed; the message is the name of its error."""


class Worker:
    """Renders one template, one call at a time. Thread-safe. The process starts at the first call."""

    def __init__(self, source: str, max_characters: int, seconds: float) -> None:
        self._setup = (source, max_characters, seconds)
        self._lock = threading.Lock()
        self._end: socket.socket | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def render(self, context: Mapping[str, Any]) -> str:
        """
        Raises:
            jinja2.TemplateError: it passes a bound, or refuses.
            RenderingError: an operation failed.
        """
        seconds = self._setup[2]
        if not self._lock.acquire(timeout=seconds):
            raise jinja2.TemplateError("it takes too long")
        try:
            answer = self._ask(dict(context), seconds)
        finally:
            self._lock.release()
        if "failed" in answer:
            raise RenderingError(answer["failed"])
        if "refused" in answer:
            raise jinja2.TemplateError(answer["refused"])
        return answer["text"]

    def _ask(self, context: dict[str, Any], seconds: float) -> dict[str, str]:
        try:
            end = self._end or self._start()
            end.settimeout(seconds)
            send(end, context)
            answer: dict[str, str] = receive(end, seconds)
        except BaseException as error:
            self._stop()
            if isinstance(error, TimeoutError):
                raise jinja2.TemplateError("it takes too long") from None
            if isinstance(error, EOFError | ConnectionError):
                raise RenderingError("its process ended") from None
            raise
        if answer.get("failed") in ("MemoryError", "RecursionError"):
            self._stop()
        return answer

    def _start(self) -> socket.socket:
        mine, its = socket.socketpair()
        with its:
            process = _spawn(its)
        self._finalizer = weakref.finalize(self, _finish, process, mine)
        if receive(mine, START_SECONDS) != "ready":
            raise RenderingError("its process did not start")
        send(mine, self._setup)
        self._end = mine
        return mine

    def _stop(self) -> None:
        self._end = None
        if self._finalizer is not None:
            self._finalizer()


def _finish(process: subprocess.Popen[bytes], end: socket.socket) -> None:
    end.close()
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait()


def _spawn(end: socket.socket) -> subprocess.Popen[bytes]:
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "paceline.templates.child"],
        env=kept | {"PYTHONPATH": os.pathsep.join(paths)},
        stdin=end.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Out of the terminal's foreground group: Ctrl-C is the parent's to act on.
        process_group=0,
    )
