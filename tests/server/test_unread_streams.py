"""Streams whose client leaves before it has taken anything: by then the call has begun, and it must end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from paceline.server import create_app, sse
from tests.support.http_calls import HELLO
from tests.support.scripted_engine import ScriptedEngine

CALLS: dict[str, dict[str, Any]] = {
    "/chat": {"message": "hello"},
    "/v1/chat/completions": {"messages": HELLO, "n": 2},
    "/v1/completions": {"prompt": ["hello", "you"], "n": 2},
}


def leave(path: str, num_taken: int) -> tuple[ScriptedEngine, set[str], int]:
    """A client that takes so many messages of a stream and then leaves; what runs as soon as the service is done."""
    engine = ScriptedEngine("word " * 500)
    body = json.dumps({"stream": True, "max_tokens": 400} | CALLS[path]).encode()
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": path, "raw_path": path.encode(),
        "query_string": b"", "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "scheme": "http", "server": ("localhost", 80), "client": ("127.0.0.1", 9),
    }  # fmt: skip

    async def go() -> tuple[set[str], int]:
        app, left, taken = create_app(engine), asyncio.Event(), []
        arriving = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if arriving:
                return arriving.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            assert engine.running
            if len(taken) == num_taken:
                left.set()
                await asyncio.Event().wait()
            taken.append(message)

        await asyncio.wait_for(app(scope, receive, send), 20)
        assert len(taken) == num_taken
        return set(engine.running), app.state.service.admission.num_active

    return engine, *asyncio.run(go())


@pytest.mark.parametrize("num_taken", range(4))
@pytest.mark.parametrize("path", CALLS)
def test_a_stream_that_is_hardly_read(path, num_taken):
    """Message 0 is the head of the answer, 1 and 2 may be the openings of its choices."""
    engine, running, active = leave(path, num_taken)
    assert engine.calls
    assert not running
    assert active == 0


def test_the_control(monkeypatch):
    """A service that closes only what it has begun to read would be seen."""
    create: Callable[..., None] = sse.EventStream.__init__

    async def nothing() -> AsyncGenerator[None]:
        yield

    def forgets(self, events, *, source, write_seconds):
        self.kept = source
        create(self, events, source=nothing(), write_seconds=write_seconds)

    monkeypatch.setattr(sse.EventStream, "__init__", forgets)
    _, running, _ = leave("/chat", 0)
    assert running
