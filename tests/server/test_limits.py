"""Clients that send too much, too slowly or nothing, or never read: they are cut off, and others are served."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import httpx
import pytest

from paceline.core.errors import ConfigError
from paceline.core.service_config import Limits
from tests.support.live_service import call_body, closed, drip, eventually, live, post, read_reply
from tests.support.scripted_engine import ScriptedEngine

SOON = Limits(
    header_seconds=0.5,
    body_seconds=0.5,
    write_seconds=0.5,
    keep_alive_seconds=0.5,
    max_header_bytes=4096,
    max_body_bytes=20_000,
    max_connections=40,
)
HELLO = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def soon():
    with live(ScriptedEngine(), limits=SOON) as service:
        yield service


@pytest.mark.parametrize(
    "head",
    [
        HELLO + b"X-Long: " + b"a" * 5000 + b"\r\n\r\n",
        HELLO + b"X-Long: " + b"a" * 500_000,
        HELLO + b"".join(b"X-%d: y\r\n" % number for number in range(2000)) + b"\r\n",
        b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health?" + b"a" * 5000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        HELLO + b"Range: bytes=" + b"0-1," * 3000 + b"0-1\r\n\r\n",
    ],
    ids=["long", "endless", "many", "path", "query", "ranges"],
)
def test_headers_over_the_limit(soon, head):
    reply = soon.exchange(head)
    assert reply.status == 431
    assert reply.headers["connection"] == "close"
    assert reply.error["message"]
    soon.good()


def test_many_ranges_below_the_limit_are_a_plain_answer(soon):
    assert soon.exchange(HELLO + b"Range: bytes=" + b"0-1," * 500 + b"0-1\r\n\r\n").status == 200


@pytest.mark.parametrize("data", [b"", b"G", HELLO, HELLO + b"X-Half: "], ids=["nothing", "byte", "half", "field"])
def test_headers_that_never_end(soon, data):
    connection = soon.connect(data)
    soon.good()
    if data:
        assert read_reply(connection).status == 408
    assert closed(connection)
    soon.good()


def test_a_byte_now_and_then_gives_no_more_time(soon):
    connection = soon.connect(HELLO)
    with pytest.raises(ConnectionError):
        drip(connection)
    soon.good()


def test_half_sent_headers_on_a_connection_that_was_used(soon):
    connection = soon.connect(HELLO + b"\r\n")
    assert read_reply(connection).status == 200
    connection.sendall(HELLO)
    assert read_reply(connection).status == 408
    assert closed(connection)


@pytest.mark.parametrize("sent", [0, 10])
def test_a_body_that_never_ends(soon, sent):
    connection = soon.connect(post(call_body(soon.engine)[:sent], length=300))
    soon.good()
    reply = read_reply(connection)
    assert (reply.status, reply.headers["connection"]) == (408, "close")
    assert reply.error["message"] == "the body did not come within 0.5 s"
    assert closed(connection)
    soon.good()


def test_a_chunked_body_that_never_ends(soon):
    head = post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    connection = soon.connect(head + b"5\r\n{    \r\n")
    assert read_reply(connection).status == 408
    soon.good()


def test_bodies_over_the_limit_without_a_length(soon):
    head = post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    connection = soon.connect(head + b"1000\r\n" + b" " * 4096 + b"\r\n")
    for _ in range(5):
        connection.sendall(b"1000\r\n" + b" " * 4096 + b"\r\n")
    reply = read_reply(connection)
    assert (reply.status, reply.headers["connection"]) == (413, "close")
    assert soon.exchange(post(b"", length=10**9)).status == 413
    assert soon.exchange(post(b"", length=int("9" * 19))).status == 413
    soon.good()


def test_a_refused_body_is_not_read_for_ever(soon):
    connection = soon.connect(post(b"", path="/nope", length=1000))
    assert read_reply(connection).status == 404
    with pytest.raises(ConnectionError):
        drip(connection)
    soon.good()


def test_an_idle_connection_is_closed(soon):
    connection = soon.connect(HELLO + b"\r\n")
    assert read_reply(connection).status == 200
    assert closed(connection)
    soon.good()


def test_more_connections_than_allowed(soon):
    eventually(lambda: not soon.server.server_state.connections)
    crowd = [soon.connect(HELLO) for _ in range(SOON.max_connections)]
    eventually(lambda: len(soon.server.server_state.connections) == SOON.max_connections)
    reply = read_reply(soon.connect())
    assert (reply.status, reply.headers["retry-after"], reply.error["code"]) == (503, "1", "overloaded")
    assert all(closed(connection) for connection in crowd)
    soon.good()


def test_a_thousand_idle_and_half_open_connections():
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2304:
        pytest.skip("both ends of 1,020 connections are open files of this process, and fewer are allowed")
    with live(ScriptedEngine(), limits=Limits(header_seconds=60, body_seconds=60)) as service:
        crowd = [service.connect(b"" if number % 2 else HELLO) for number in range(1000)]
        bodies = [service.connect(post(b"{", length=100)) for _ in range(20)]
        eventually(lambda: len(service.server.server_state.connections) == 1020)
        for _ in range(3):
            service.good()
        assert len(service.server.server_state.connections) >= 1020
        assert all(connection.fileno() >= 0 for connection in crowd + bodies)


def slow_reader(service, **more):
    body = call_body(service.engine, max_tokens=4000, **more)
    return service.connect(post(body), receive_buffer=1024)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_stops_reading_is_dropped(stream):
    """Also once its answer is complete and only waits to be taken."""
    engine = ScriptedEngine("no end in sight " * 500)
    with live(engine, limits=Limits(write_seconds=0.4, keep_alive_seconds=0.4), send_buffer=8192) as service:
        stalled = slow_reader(service, stream=stream, logprobs=True, top_logprobs=1)
        eventually(lambda: engine.calls)
        service.good()
        eventually(lambda: not service.server.server_state.connections)
        service.idle()
        assert len(engine.aborted) == int(stream)
        assert closed(stalled)


def test_a_slow_reader_slows_nobody_else(worker):
    """The real engine, which ends the slow reader's call while its text is still waiting to be taken."""
    with live(worker, limits=Limits(write_seconds=0.5), send_buffer=8192) as service:
        stalled = slow_reader(service, stream=True, ignore_eos=True, logprobs=True, top_logprobs=20)
        eventually(lambda: worker.stats()["num_requests_running"] > 0)
        body = json.loads(call_body(worker, max_tokens=30, ignore_eos=True))
        with httpx.Client(base_url=service.url, trust_env=False, timeout=30) as client:
            assert client.post("/v1/chat/completions", json=body).json()["usage"]["completion_tokens"] == 30
        eventually(lambda: worker.stats()["finished"].get("abort"))
        service.good()
        assert closed(stalled)


@pytest.mark.parametrize(
    "options",
    [
        {"max_body_bytes": 0}, {"max_requests": -1}, {"max_requests": 1.5}, {"write_seconds": 0}, {"drain_seconds": -1},
        {"body_seconds": float("nan")}, {"header_seconds": float("inf")}, {"max_connections": True},
        {"max_requests_per_key": 0},
    ],
)  # fmt: skip
def test_limits_that_cannot_be(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        Limits(**options)


def test_descriptors_are_enough_for_the_connections():
    with live(ScriptedEngine(), limits=Limits(max_connections=100)):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft >= min(356, hard)


FEW_FILES = """
import sys
from paceline.core.service_config import Limits
from paceline.server.run import _allow_descriptors
print(_allow_descriptors(Limits().max_connections))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
@pytest.mark.parametrize("files", [64, 256])
def test_fewer_open_files_mean_fewer_connections(files):
    line = f'ulimit -n {files}; exec "{sys.executable}" -c "$0"'
    done = subprocess.run(["bash", "-c", line, FEW_FILES], capture_output=True, text=True, check=True)
    assert 1 <= int(done.stdout) < files / 2
