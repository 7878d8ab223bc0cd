"""SIGTERM and SIGINT: calls in progress end well, new ones are refused, then the process ends, whatever clients do."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from paceline.core.service_config import Limits
from tests.support.http_calls import HELLO, assert_error
from tests.support.live_service import PATIENCE, call_body, eventually, live, post
from tests.support.scripted_engine import ScriptedEngine

SERVE = """
import sys
from paceline.core.service_config import Limits, ServiceConfig
from paceline.server import serve
from tests.support.scripted_engine import ScriptedEngine

words, pause, drain_seconds = sys.argv[1:]
engine = ScriptedEngine("word " * int(words), pause=float(pause))
limits = Limits(drain_seconds=float(drain_seconds), keep_alive_seconds=600, header_seconds=600)
serve(engine, ServiceConfig(port=0), limits=limits, listening=print)
"""
BODY = {"model": "scripted", "messages": HELLO, "stream": True}
ROOT = Path(__file__).parents[2]


@contextmanager
def serving(*, words=8, pause=0.05, drain_seconds=60):
    """A service of its own whose answers take a while, and a client of it."""
    command = [sys.executable, "-u", "-c", SERVE, str(words), str(pause), str(drain_seconds)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert select.select([process.stdout], [], [], 60)[0], "it does not start"
            url = f"http://127.0.0.1:{int(process.stdout.readline())}"
            with httpx.Client(base_url=url, trust_env=False, timeout=PATIENCE) as client:
                yield process, client
        finally:
            process.kill()


def until_draining(client):
    """The first answer that says so: a signal takes a moment."""
    end = time.monotonic() + PATIENCE
    while True:
        answer = client.post("/chat", json={"message": "hi", "max_tokens": 1})
        if answer.status_code != 200:
            return answer
        assert time.monotonic() < end


def test_calls_in_progress_end_well():
    """Whatever connections are idle, or hold half a request."""
    with serving() as (process, client), client.stream("POST", "/v1/chat/completions", json=BODY) as stream:
        lines = stream.iter_lines()
        next(lines)
        address = (client.base_url.host, client.base_url.port)
        with socket.create_connection(address), socket.create_connection(address) as half:
            half.sendall(post(b"{", length=50))
            process.send_signal(signal.SIGTERM)
            refused = until_draining(client)
            assert_error(refused, 503, code="draining")
            assert int(refused.headers["retry-after"]) >= 1
            assert client.get("/health").status_code == 200
            assert_error(client.get("/ready"), 503, code="draining")
            seen = [line for line in lines if line]
            assert seen[-1] == "data: [DONE]"
            assert json.loads(seen[-2][6:])["choices"][0]["finish_reason"] == "length"
            assert process.wait(PATIENCE) == 0


def test_a_second_signal_ends_at_once():
    with serving(words=5000) as (process, client), client.stream("POST", "/v1/chat/completions", json=BODY) as stream:
        lines = stream.iter_lines()
        next(lines)
        process.send_signal(signal.SIGINT)
        until_draining(client)
        process.send_signal(signal.SIGINT)
        # 60 seconds may pass before the calls in progress are ended otherwise.
        assert process.wait(PATIENCE) == 0
        with pytest.raises(httpx.TransportError):
            list(lines)


@pytest.mark.parametrize("stream", [False, True])
def test_calls_that_take_too_long_end_with_an_error(stream):
    engine = ScriptedEngine("word " * 4000, pause=0.01)
    with live(engine, limits=Limits(drain_seconds=0.2)) as service:
        connection = service.connect(post(call_body(engine, stream=stream)))
        eventually(lambda: engine.running)
        service.server.handle_exit(signal.SIGTERM, None)
        data = b""
        while more := connection.recv(65536):
            data += more
        assert (b"200 OK" if stream else b"503 Service Unavailable") in data
        assert b'"code":"aborted"' in data
        assert b"[DONE]" not in data
