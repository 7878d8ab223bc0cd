"""SIGTERM and SIGINT: calls in progress end well, new ones are refused, then the process ends, whatever clients do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.server.calling import HELLO, assert_error
from tests.server.live import PATIENCE, post

SERVE = """
import sys
from paceline.core.service_config import Limits, ServiceConfig
from paceline.server import serve
from tests.server.scripted_engine import ScriptedEngine

words, pause, drain_seconds = sys.argv[1:]
engine = ScriptedEngine("word " * int(words), pause=float(pause))
limits = Limits(drain_seconds=float(drain_seconds), keep_alive_seconds=600, header_seconds=600)
serve(engine, ServiceConfig(port=0), limits=limits)
"""
BODY = {"model": "scripted", "messages": HELLO, "stream": True}
ROOT = Path(__file__).parents[2]
BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])


@contextmanager
def serving(*, words=8, pause=0.05, drain_seconds=60):
    """A service of its own whose answers take a while, and a client of it."""
    command = [sys.executable, "-u", "-c", SERVE, str(words), str(pause), str(drain_seconds)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().split(" at ")[1].split(" ")[0]
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


@BOTH
def test_calls_in_progress_end_well(number):
    with serving() as (process, client), client.stream("POST", "/v1/chat/completions", json=BODY) as stream:
        lines = stream.iter_lines()
        next(lines)
        process.send_signal(number)
        refused = until_draining(client)
        assert_error(refused, 503, code="draining")
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/health").status_code == 200
        seen = [line for line in lines if line]
        assert seen[-1] == "data: [DONE]"
        assert json.loads(seen[-2][6:])["choices"][0]["finish_reason"] == "length"
        assert process.wait(PATIENCE) == 0


def test_calls_that_take_too_long_end_with_an_error():
    with serving(words=5000, drain_seconds=0.3) as (process, client):
        with client.stream("POST", "/v1/chat/completions", json=BODY) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.terminate()
            seen = [line for line in lines if line]
        assert json.loads(seen[-1][6:])["error"]["code"] == "aborted"
        assert process.wait(PATIENCE) == 0


def test_a_second_signal_ends_at_once():
    with serving(words=5000) as (process, client):
        with client.stream("POST", "/v1/chat/completions", json=BODY) as stream:
            next(stream.iter_lines())
            process.terminate()
            until_draining(client)
            process.terminate()
            # 60 seconds may pass before the calls in progress are ended otherwise.
            assert process.wait(PATIENCE) == 0
            with pytest.raises(httpx.TransportError):
                stream.read()


def test_idle_and_half_open_connections_do_not_hold_it_up():
    with serving() as (process, client):
        assert client.get("/health").status_code == 200
        import socket

        address = (client.base_url.host, client.base_url.port)
        with socket.create_connection(address), socket.create_connection(address) as half:
            half.sendall(post(b"{", length=50))
            time.sleep(0.1)
            process.terminate()
            assert process.wait(PATIENCE) == 0
