"""The service when its engine's process is killed: clients are told, health tells, and it comes back."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from paceline.cli.loopback import running_service
from tests.support.checkpoints import tiny_llama, tiny_tokenizer
from tests.support.waiting import wait_for

BODY = {"message": "Hello", "stream": True, "max_tokens": 16000, "ignore_eos": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model")
    tiny_llama(path, max_positions=16384)
    tiny_tokenizer(path, max_length=16384)
    return str(path)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def engine_of(port: int) -> int | None:
    """The process that a service's parent has started for its engine."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if b"paceline.engine.process" not in (entry / "cmdline").read_bytes().split(b"\0"):
                continue
            if str(port).encode() in Path(f"/proc/{parent_of(int(entry.name))}/cmdline").read_bytes().split(b"\0"):
                return int(entry.name)
        except OSError:
            continue
    return None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the engine's process in /proc")
@pytest.mark.parametrize(("fault", "options"), [("SIGKILL", []), ("SIGSTOP", ["--kill-seconds", "3"])])
def test_an_engine_that_dies_or_is_stuck_is_told_to_clients_and_comes_back(fault, options, model):
    with running_service([model, *options]) as client:
        port = client.base_url.port
        before = engine_of(port)
        assert before is not None
        with client.stream("POST", "/chat", json=BODY) as stream:
            lines = stream.iter_lines()
            next(line for line in lines if line.startswith("data: "))
            os.kill(before, signal.Signals[fault])
            last = [line for line in lines if line.startswith("data: {")][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_dead"
        wait_for(lambda: client.get("/ready").status_code == 200)
        after = engine_of(port)
        assert after not in (None, before)
        answer = client.post("/chat", json=BODY | {"stream": False, "max_tokens": 5})
        assert answer.json()["usage"]["completion_tokens"] == 5
        assert client.get("/stats").json()["pages"]["referenced"] == 0
    wait_for(lambda: engine_of(port) is None and not Path(f"/proc/{after}").exists())


def test_in_process_there_is_no_other(model):
    with running_service([model, "--in-process"]) as client:
        assert client.get("/ready").status_code == 200
        assert engine_of(client.base_url.port) is None
        answer = client.post("/chat", json=BODY | {"stream": False, "max_tokens": 5})
        assert answer.json()["usage"]["completion_tokens"] == 5
