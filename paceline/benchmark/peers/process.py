"""Knows how to talk with a peer's process: one JSON line out, one back, and an end whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from paceline.core.errors import PacelineError

WORKER = Path(__file__).with_name("adapters") / "worker.py"
ANSWER_SECONDS = 1800.0
STOP_SECONDS = 10.0
HIDDEN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
"""Variables that would let our packages into another engine's environment."""


class PeerError(PacelineError):
    """Why a peer cannot take part."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What a peer generated."""

    token_ids: list[list[int]]
    seconds: float
    steps: list[tuple[float, int]]
    """(seconds since the call, tokens per answer so far) after every step; for one sequence at a time, in all."""


class PeerProcess:
    """One adapter at work; a context manager."""

    def __init__(self, python: Path, adapter: Path) -> None:
        self.versions: dict[str, str] = {}
        """Of what is loaded."""
        self._loaded: dict[str, Any] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        environment = {name: value for name, value in os.environ.items() if name not in HIDDEN}
        try:
            self._process = subprocess.Popen(  # noqa: S603 (our own script)
                [str(python), str(WORKER), str(adapter)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                env=environment,
            )
        except OSError as error:
            self._log.close()
            raise PeerError(f"its process could not be started: {error}") from None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait(STOP_SECONDS)
        self._reader.join(STOP_SECONDS)
        with contextlib.suppress(BrokenPipeError):  # it ended before it had read all
            self._process.stdin.close()
        self._process.stdout.close()
        self._log.close()

    def load(self, model: str, *, threads: int, settings: Mapping[str, Any]) -> dict[str, str]:
        """Loads a model unless it is just that one, loaded in that way; the versions of what it runs on.

        Raises:
            PeerError: it cannot load the model, or does not answer.
        """
        wanted = {"do": "load", "model": model, "threads": threads, "settings": dict(settings)}
        if wanted != self._loaded:
            self._loaded = None
            self.versions = self._ask(wanted, "loaded")["versions"]
            self._loaded = wanted
        return self.versions

    def generate(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> Answers:
        """Greedy answers of exactly ``max_tokens`` tokens.

        Raises:
            PeerError: it failed, or gave answers of another number or length.
        """
        job = {"do": "generate", "prompts": [list(prompt) for prompt in prompts], "max_tokens": max_tokens}
        answer = self._ask(job, "answers")
        lengths = [len(tokens) for tokens in answer["token_ids"]]
        if lengths != [max_tokens] * len(prompts):
            raise PeerError(f"it was asked for {len(prompts)} answers of {max_tokens} tokens and gave {lengths}")
        return Answers(answer["token_ids"], answer["seconds"], [(at, count) for at, count in answer["steps"]])

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _ask(self, job: Mapping[str, Any], expected: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._lines.get(timeout=ANSWER_SECONDS) or "null")
        except queue.Empty:
            raise PeerError(f"it did not answer within {ANSWER_SECONDS:.0f} s") from None
        except (OSError, ValueError):
            answer = None
        if answer is None:
            raise PeerError(f"it ended: {self._last_words()}")
        if answer["event"] != expected:
            raise PeerError(answer.get("reason", f"it answered {answer['event']!r}"))
        found: dict[str, Any] = answer
        return found

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"
