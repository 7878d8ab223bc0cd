"""When things break: engines that die, clients that leave, readers that stall, servers that are full."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import httpx
import pytest

from paceline.core.errors import ConfigError, EngineDeadError
from paceline.server import Limits, create_app
from paceline.server.run import listen
from tests.support.http_calls import HELLO, assert_error, complete, events
from tests.support.scripted_engine import ScriptedEngine

FAULTS = [
    (EngineDeadError("secret /srv/path"), 503, "engine_dead"),
    (RuntimeError("secret /srv/path"), 500, None),
    ("error", 500, "generation_failed"),
    ("abort", 503, "aborted"),
]


def test_a_dead_engine():
    engine = ScriptedEngine()
    engine.alive = False
    assert_error(complete(engine), 503, code="engine_dead")
    assert_error(complete(engine, stream=True), 503, code="engine_dead")


@pytest.mark.parametrize(("fault", "status", "code"), FAULTS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_fails_before_its_first_token(fault, status, code, stream):
    engine = ScriptedEngine(fault=fault)
    error = assert_error(complete(engine, stream=stream), status, code=code)
    assert "secret" not in error["message"]
    assert len(engine.aborted) == 1


@pytest.mark.parametrize(("fault", "status", "code"), FAULTS)
def test_a_stream_that_fails_ends_with_an_error(fault, status, code):
    engine = ScriptedEngine(fault=fault, fault_after=3)
    assert_error(complete(engine), status, code=code)
    seen = events(complete(engine, stream=True))
    assert seen[-1]["error"]["code"] == code
    assert "secret" not in json.dumps(seen)
    assert "[DONE]" not in seen


def scope(path="/v1/chat/completions"):
    headers = [(b"content-type", b"application/json")]
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "method": "POST",
        "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers, "root_path": "",
        "scheme": "http", "server": ("test", 80), "client": ("test", 1),
    }  # fmt: skip


async def leave(engine, body, *, after_chunks=0, send_hangs=False, limits=None):
    """Runs a call whose client goes away (or stops reading) after some chunks; returns what was sent."""
    gone, sent = asyncio.Event(), []
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive():
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)
        if len(sent) > after_chunks:
            if send_hangs:
                await asyncio.sleep(60)
            gone.set()

    if after_chunks == 0 and not send_hangs:
        asyncio.get_running_loop().call_later(0.1, gone.set)
    await asyncio.wait_for(create_app(engine, limits=limits)(scope(), receive, send), 10)
    await asyncio.sleep(0)
    return sent


BODY = {"model": "scripted", "messages": HELLO}


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_the_first_token(stream):
    engine = ScriptedEngine(pause=5)
    asyncio.run(leave(engine, BODY | {"stream": stream}))
    assert len(engine.aborted) == 1
    assert not engine.running


@pytest.mark.parametrize(("stream", "after"), [(False, 0), (True, 2), (True, 5)])
def test_a_client_that_leaves_half_way(stream, after):
    engine = ScriptedEngine(pause=0.02)
    asyncio.run(leave(engine, BODY | {"stream": stream}, after_chunks=after))
    assert len(engine.aborted) == 1
    assert not engine.running


def test_a_stream_that_cannot_even_begin():
    engine = ScriptedEngine(pause=0.01)

    async def go():
        body = [{"type": "http.request", "body": json.dumps(BODY | {"stream": True}).encode(), "more_body": False}]

        async def receive():
            return body.pop() if body else await asyncio.sleep(60)

        async def send(message):
            raise OSError("gone")

        await create_app(engine)(scope(), receive, send)
        await asyncio.sleep(0.05)

    asyncio.run(go())
    assert len(engine.aborted) == 1
    assert not engine.running


def test_a_client_that_stops_reading_is_dropped():
    engine = ScriptedEngine()
    limits = Limits(write_seconds=0.1)
    asyncio.run(leave(engine, BODY | {"stream": True}, after_chunks=3, send_hangs=True, limits=limits))
    assert len(engine.aborted) == 1
    assert not engine.running


def test_a_finished_call_is_not_aborted():
    engine = ScriptedEngine()
    complete(engine)
    complete(engine, stream=True)
    assert engine.aborted == []


def test_more_calls_than_allowed():
    engine = ScriptedEngine(pause=0.02)

    async def go():
        transport = httpx.ASGITransport(create_app(engine, limits=Limits(max_requests=2)))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            calls = [client.post("/v1/chat/completions", json=BODY | {"stream": i % 2 == 0}) for i in range(5)]
            answers = await asyncio.gather(*calls)
            return [*answers, await client.post("/v1/chat/completions", json=BODY)]

    *crowd, later = asyncio.run(go())
    statuses = sorted(answer.status_code for answer in crowd)
    assert statuses == [200, 200, 429, 429, 429]
    refused = next(answer for answer in crowd if answer.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert_error(refused, 429, code="overloaded")
    assert later.status_code == 200


def test_a_port_that_is_taken_names_a_free_one():
    with listen("127.0.0.1", 0) as taken, pytest.raises(ConfigError) as caught:
        listen("127.0.0.1", taken.getsockname()[1])
    cause, fix = str(caught.value).split("\n")
    assert "in use" in cause
    port = int(fix.rstrip(".").rpartition(" ")[2])
    with listen("127.0.0.1", port):
        pass


@pytest.mark.parametrize(("host", "port"), [("no.such.host.invalid", 80), ("192.0.2.1", 80), ("127.0.0.1", 99999)])
def test_addresses_that_cannot_be_used(host, port):
    with pytest.raises(ConfigError, match=r"--(host|port)"):
        listen(host, port)


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn"])
def test_a_missing_package_is_named_with_the_fix(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; import paceline.server"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert f"{missing}, which is not installed\nInstall it: pip install 'paceline[serve]'" in ended.stderr
