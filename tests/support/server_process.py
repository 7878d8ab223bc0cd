"""The service as users run it: a process of its own with a real engine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
START_SECONDS = 90


def endless_loading(directory: Path) -> tuple[Path, str]:
    """A pipe that whoever loads a model opens, to wait at it for ever; and the PYTHONPATH that makes it so.

    No file of a checkpoint can do that: a pipe among them is refused. So it is where the reader of weights is imported.
    """
    pipe, package = directory / "pipe", directory / "packages" / "safetensors"
    os.mkfifo(pipe)
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"open({str(pipe)!r}).read()\n")
    return pipe, os.pathsep.join([str(package.parent), str(ROOT)])


@dataclass(frozen=True)
class ServerProcess:
    url: str
    pid: int

    def stats(self):
        with httpx.Client(trust_env=False, timeout=START_SECONDS) as client:
            return client.get(f"{self.url}/stats").json()

    def family(self):
        """The ids of the server's process and of the engine's, which it started."""
        return [self.pid, *children(self.pid)]


def children(pid):
    """Ids of the processes that ``pid`` started, and of those they started."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *children(child)]
    return found


@contextmanager
def serving(log: Path, *arguments: str):
    """A server on a port that the system chooses; ``log`` gets what it prints."""
    command = [sys.executable, "-m", "paceline.cli.main", "serve", *arguments, "--port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file, env=environment) as process:
        try:
            yield ServerProcess(_url_once_up(process, log), process.pid)
        finally:
            process.terminate()
            try:
                process.wait(30)
            finally:
                process.kill()


def _url_once_up(process, log):
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        named = re.search(r"http://127\.0\.0\.1:([1-9][0-9]*)", log.read_text())
        try:
            if named and httpx.get(f"{named[0]}/ready", trust_env=False).status_code == 200:
                return named[0]
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    return pytest.fail(f"the server did not come up:\n{log.read_text()}")
