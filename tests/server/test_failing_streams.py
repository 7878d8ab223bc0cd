"""Calls that fail half-way, as OpenAI's client sees them: an error of its API, never an answer that looks whole."""

from __future__ import annotations

import json
import time

import httpx
import openai
import pytest

from paceline.core.errors import EngineDeadError
from tests.support.http_calls import HELLO
from tests.support.live_service import eventually, live, served
from tests.support.scripted_engine import ScriptedEngine

FAULTS = {
    "request fails": ("error", "generation_failed"),
    "request aborted": ("abort", "aborted"),
    "engine dies": (EngineDeadError("secret"), "engine_dead"),
    "engine raises": (RuntimeError("secret"), None),
    "engine's files fail": (OSError("secret"), None),
    "engine times out": (TimeoutError("secret"), None),
}


def client_of(service):
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=20)


def read(stream):
    """What came, and the error that ended it."""
    seen = []
    try:
        for chunk in stream() if callable(stream) else stream:
            seen.append(chunk)
    except openai.APIError as error:
        return seen, error
    raise AssertionError("it looks whole")


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize(("fault", "code"), FAULTS.values(), ids=FAULTS)
def test_the_client_raises(fault, code, endpoint):
    engine = ScriptedEngine(fault=fault, fault_after=4)
    with live(engine) as service, client_of(service) as client:
        if endpoint == "chat":
            stream = client.chat.completions.create(model="scripted", messages=HELLO, stream=True)
            text = lambda chunk: chunk.choices[0].delta.content  # noqa: E731
        else:
            stream = client.completions.create(model="scripted", prompt="hello", stream=True)
            text = lambda chunk: chunk.choices[0].text  # noqa: E731
        seen, caught = read(stream)
        said = "".join(text(chunk) or "" for chunk in seen)
        assert said
        assert "Hello wörld".startswith(said)
        assert caught.code == code
        assert "secret" not in str(caught)
        service.idle()


@pytest.mark.parametrize("path", ["/chat", "/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("fault", [fault for fault, _ in FAULTS.values()], ids=FAULTS)
def test_the_stream_ends_behind_the_error(fault, path):
    """A client that reads on until the end must come to one: no answer may stay open."""
    fields = {"/chat": {"message": "hello"}, "/v1/completions": {"prompt": "hello"}}.get(path, {"messages": HELLO})
    with live(ScriptedEngine(fault=fault, fault_after=2)) as service:
        with httpx.stream("POST", service.url + path, json=fields | {"stream": True}, timeout=20) as stream:
            lines = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
        assert "error" in json.loads(lines[-1])
        assert "[DONE]" not in lines
        service.idle()


def test_a_whole_answer_that_fails_is_an_error_of_the_server():
    with live(ScriptedEngine(fault="error", fault_after=4)) as service, client_of(service) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="scripted", messages=HELLO)
        assert caught.value.status_code == 500


@pytest.mark.parametrize("stream", [True, False])
def test_an_engine_that_crashes(worker, stream):
    """Its clients, running and waiting, hear of it within seconds; health and newcomers do at once."""
    step, deadline = worker.llm.engine.step, []

    def crash():
        if worker.llm.engine.counters.num_generated > 20:
            deadline.append(time.monotonic() + 5)
            raise RuntimeError("out of luck")
        return step()

    worker.llm.engine.step = crash
    fields = {"messages": HELLO, "max_tokens": 1000, "extra_body": {"ignore_eos": True}}
    with live(worker) as service, client_of(service) as client:
        name = served(worker)
        _, caught = read(lambda: client.chat.completions.create(model=name, stream=stream, **fields))
        assert caught.code == "engine_dead"
        assert time.monotonic() < deadline[0]
        eventually(lambda: not worker.alive)
        assert httpx.get(f"{service.url}/health", trust_env=False).status_code == 503
        assert httpx.get(f"{service.url}/ready", trust_env=False).status_code == 503
        with pytest.raises(openai.APIStatusError) as late:
            client.chat.completions.create(model=name, **fields)
        assert (late.value.status_code, late.value.code) == (503, "engine_dead")
        assert int(late.value.response.headers["retry-after"]) > 0
        eventually(lambda: service.server.service.admission.num_active == 0)
