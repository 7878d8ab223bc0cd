"""The port is open while the model is read: who comes is told so, by the same doors as later."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.checkpoints import tiny_llama, tiny_tokenizer
from tests.support.http_calls import assert_error
from tests.support.server_process import ROOT, endless_loading
from tests.support.waiting import wait_for

PATHS = ["/ready", "/health", "/version", "/metrics", "/v1/models", "/nowhere"]


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def service(directory: Path, log: Path, port: int, *options: str, key: str = "", path: str = str(ROOT)):
    command = [sys.executable, "-m", "paceline.cli.main", "serve", str(directory), "--port", str(port), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    if key:
        environment["PACELINE_API_KEY"] = key
    with (
        log.open("w") as file,
        subprocess.Popen(command, stdout=file, stderr=file, env=environment) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client,
    ):
        try:
            wait_for(lambda: process.poll() is not None or answers(client))
            yield process, client
        finally:
            process.terminate()
            try:
                process.wait(30)
            finally:
                process.kill()


def answers(client: httpx.Client) -> bool:
    try:
        return bool(client.get("/ready").status_code)
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("options", [(), ("--in-process",)], ids=["child", "in-process"])
def test_everything_is_503_until_the_model_is_there(options, tmp_path, port):
    model = tmp_path / "model"
    tiny_llama(model)
    tiny_tokenizer(model)
    with service(model, tmp_path / "log", port, *options) as (process, client):
        seen = {}
        for path in PATHS:
            answer = client.get(path)
            if answer.status_code == 503:  # it may have come up by now
                error = assert_error(answer, 503, code="not_ready")
                assert "loaded" in error["message"]
                assert int(answer.headers["retry-after"]) > 0
                seen[path] = answer
        assert "/ready" in seen
        wait_for(lambda: client.get("/ready").status_code == 200)
        answer = client.post("/v1/completions", json={"prompt": "hello", "max_tokens": 2})
        assert answer.status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    said = (tmp_path / "log").read_text()
    assert re.search(rf"Paceline serves model at http://127\.0\.0\.1:{port}", said)
    assert "Traceback" not in said


def test_the_doors_are_shut_from_the_beginning(tmp_path, port):
    _, path = endless_loading(tmp_path)
    with service(tmp_path, tmp_path / "log", port, key="secret", path=path) as (process, client):
        mine = {"Authorization": "Bearer secret"}
        for path in PATHS[2:]:
            assert_error(client.get(path), 401, code="invalid_api_key")
            assert_error(client.get(path, headers=mine), 503, code="not_ready")
        for path in PATHS[:2]:
            assert_error(client.get(path), 503, code="not_ready")
        assert_error(client.get("/ready", headers={"Host": "evil.example"}), 403, code="host_not_allowed")
        body = {"prompt": "hello"}
        assert_error(client.post("/v1/completions", json=body, headers=mine), 503, code="not_ready")
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


def test_a_model_that_cannot_be_loaded_ends_the_service(tmp_path, port):
    (tmp_path / "config.json").write_text("{}")
    with service(tmp_path, tmp_path / "log", port) as (process, _):
        assert process.wait(60) == 2
    said = (tmp_path / "log").read_text()
    assert "config.json" in said
    assert "Traceback" not in said
