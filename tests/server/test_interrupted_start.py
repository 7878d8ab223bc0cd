"""A service that is told to end while it reads its model: it ends at once, says nothing odd, and leaves no process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.server_process import ROOT, children, endless_loading
from tests.support.waiting import gone, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds the engine's process in /proc")
CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGKILL": -signal.SIGKILL}


@contextmanager
def started(directory: Path, *options: str, path: str = str(ROOT)):
    command = [sys.executable, "-m", "paceline.cli.main", "serve", str(directory), "--port", "0", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def reading(directory: Path, *options: str):
    """A service that reads a model, which never comes to an end: it waits at a pipe that is kept open."""
    pipe, path = endless_loading(directory)
    ends: list[int] = []
    with started(directory, *options, path=path) as process:
        try:
            wait_for(lambda: process.poll() is not None or is_read(pipe, ends))
            assert process.poll() is None, process.stdout.read()
            yield process
        finally:
            for end in ends:
                os.close(end)


def is_read(pipe: Path, ends: list[int]) -> bool:
    """Whether somebody has the pipe open for reading; ``ends`` gets the other end, which makes them wait."""
    try:
        ends.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("options", [(), ("--in-process",)], ids=["child", "in-process"])
@pytest.mark.parametrize("name", CODES)
def test_a_service_that_reads_its_model_ends_at_once(name, options, tmp_path):
    with reading(tmp_path, *options) as process:
        engines = children(process.pid)
        assert len(engines) == (0 if options else 1)
        process.send_signal(signal.Signals[name])
        said, _ = process.communicate(timeout=60)  # also waits for an engine that lives on, which holds the pipe too
        wait_for(lambda: all(map(gone, engines)))
    assert process.returncode == CODES[name]
    assert "Traceback" not in said
    assert said.splitlines() == [f"loading {tmp_path} ..."]


def imports_torch(pid: int) -> bool:
    try:
        return "torch" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


def test_an_engine_whose_service_is_killed_while_it_imports_never_reads(tmp_path):
    _, path = endless_loading(tmp_path)
    with started(tmp_path, path=path) as process:
        engines: list[int] = []
        wait_for(lambda: bool(engines.extend(children(process.pid)) or engines))
        wait_for(lambda: imports_torch(engines[0]))
        process.kill()
        process.communicate(timeout=60)
    wait_for(lambda: gone(engines[0]))
