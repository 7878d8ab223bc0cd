"""Streams that have to wait for their first token, or for the next one: their clients hear that the service lives."""

from __future__ import annotations

import json
import time

import httpx
import openai
import pytest

from paceline import LLM
from paceline.engine.worker import EngineWorker
from paceline.server import service as service_room
from paceline.server import sse
from tests.support.http_calls import HELLO, events
from tests.support.live_service import eventually, live
from tests.support.scripted_engine import ScriptedEngine

CALLS = {
    "/chat": {"message": "hello"},
    "/v1/chat/completions": {"messages": HELLO, "n": 2},
    "/v1/completions": {"prompt": ["hello", "you"], "n": 2},
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    assert service_room.AT_ONCE_SECONDS <= 2
    assert sse.SILENT_SECONDS <= 15
    monkeypatch.setattr(service_room, "AT_ONCE_SECONDS", 0.1)
    monkeypatch.setattr(sse, "SILENT_SECONDS", 0.1)


def streaming(service, path, **more):
    return httpx.stream(
        "POST", f"{service.url}{path}", json={"stream": True} | CALLS[path] | more, timeout=60, trust_env=False
    )


def is_comment(line):
    return line.startswith(":")


@pytest.mark.parametrize("path", CALLS)
def test_headers_and_comments_come_before_the_first_token_and_between_tokens(path):
    engine = ScriptedEngine("one two", pause=0.4)
    with live(engine) as service, streaming(service, path) as stream:
        assert stream.status_code == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        text = "".join(stream.iter_text())
    heard = [event for event in text.split("\n\n") if event]
    assert is_comment(heard[0])
    first = next(place for place, event in enumerate(heard) if not is_comment(event))
    assert any(map(is_comment, heard[first:]))
    assert [json.loads(event[6:]) for event in heard if not is_comment(event) and event != "data: [DONE]"]


def test_clients_do_not_see_the_comments():
    engine = ScriptedEngine("one two", pause=0.3)
    keys = {"api_key": "none", "max_retries": 0, "timeout": 60}
    with live(engine) as service, openai.OpenAI(base_url=f"{service.url}/v1", **keys) as client:
        chunks = list(client.chat.completions.create(model="scripted", messages=HELLO, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "one two"


def test_a_stream_without_silence_has_no_comments(monkeypatch):
    monkeypatch.setattr(sse, "SILENT_SECONDS", 60.0)
    with live(ScriptedEngine(pause=0.15)) as service, streaming(service, "/chat", max_tokens=3) as stream:
        stream.read()
    assert len(events(stream)) == 4


@pytest.mark.parametrize("path", CALLS)
def test_what_goes_wrong_late_is_the_streams_last_event(path):
    engine = ScriptedEngine(pause=0.4, fault="error")
    with live(engine) as service, streaming(service, path) as stream:
        assert stream.status_code == 200
        last = "".join(stream.iter_text()).rstrip().rpartition("\n\n")[2]
        service.idle()
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "generation_failed"


@pytest.mark.parametrize("path", CALLS)
def test_what_goes_wrong_at_once_has_a_proper_status(path, monkeypatch):
    monkeypatch.setattr(service_room, "AT_ONCE_SECONDS", 20.0)
    engine = ScriptedEngine(pause=0.05, fault="error")
    with live(engine) as service, streaming(service, path) as stream:
        assert stream.status_code == 500
        assert json.loads(stream.read())["error"]["code"] == "generation_failed"


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize("when", ["at once", "once it has heard a comment"])
def test_a_client_that_leaves_while_it_waits(path, when):
    engine = ScriptedEngine(pause=3600)
    with live(engine) as service:
        with streaming(service, path) as stream:
            assert stream.status_code == 200
            if when != "at once":
                next(stream.iter_bytes())
        service.idle()
    assert len(engine.aborted) == (2 if path == "/v1/completions" else 1)


def test_behind_a_long_answer_with_one_seat(tiny, monkeypatch):
    worker = EngineWorker(LLM(str(tiny[0]), speculative_config=None, num_blocks=400, max_num_seqs=1))
    step = worker.llm.engine.step
    monkeypatch.setattr(worker.llm.engine, "step", lambda: time.sleep(0.1) or step())
    long = {"max_tokens": 1900, "ignore_eos": True}
    try:
        with live(worker) as service:
            with streaming(service, "/chat", **long) as first:
                heard = first.iter_bytes()  # kept: httpx hangs up when it goes
                next(heard)
                with streaming(service, "/chat", max_tokens=2) as second:
                    assert second.status_code == 200
                    assert worker.stats()["num_requests_waiting"] == 1
            eventually(lambda: worker.stats()["num_requests_waiting"] == 0)
            service.good()
    finally:
        worker.close()
