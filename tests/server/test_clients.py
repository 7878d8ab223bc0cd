"""The service as clients of others see it: OpenAI's in both its forms, httpx-sse, and an evaluation harness."""

from __future__ import annotations

import asyncio
import json
import time
from operator import itemgetter
from types import SimpleNamespace

import httpx
import httpx_sse
import openai
import pytest

from paceline.core.service_config import Limits
from tests.support.http_calls import HELLO
from tests.support.live_service import eventually, live, served
from tests.support.scripted_engine import ScriptedEngine

FIELDS = {"max_tokens": 12, "temperature": 1.0, "seed": 5, "extra_body": {"ignore_eos": True}}
PROMPTS = [[40, 41, 42, 43, 44, 45], [50, 51, 52, 53], [60, 61, 62, 63, 64]]


def options(url, **more):
    return {"base_url": f"{url}/v1", "api_key": "none", "max_retries": 0, "timeout": 60} | more


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(**options(server)) as client:
        yield client


@pytest.fixture(scope="module")
def model(client):
    return client.models.list().data[0].id


@pytest.fixture(scope="module")
def whole(client, model):
    """The text that every way to ask must give."""
    return client.chat.completions.create(model=model, messages=HELLO, **FIELDS).choices[0].message.content


def test_openai_asynchronous(server, model, whole):
    async def go():
        async with openai.AsyncOpenAI(**options(server)) as client:
            asks = [client.chat.completions.create(model=model, messages=HELLO, **FIELDS) for _ in range(4)]
            answers = await asyncio.gather(*asks)
            stream = await client.chat.completions.create(model=model, messages=HELLO, stream=True, **FIELDS)
            parts = [choice.delta.content or "" async for chunk in stream for choice in chunk.choices]
            return [answer.choices[0].message.content for answer in answers], "".join(parts)

    assert asyncio.run(go()) == ([whole] * 4, whole)


def test_openai_raw_responses(client, model, whole):
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=HELLO, extra_headers={"X-Request-Id": "mine-1"}, **FIELDS
    )
    assert (raw.status_code, raw.headers["x-request-id"], raw.request_id) == (200, "mine-1", "mine-1")
    assert raw.parse().choices[0].message.content == whole
    ask = client.chat.completions.with_streaming_response.create
    with ask(model=model, messages=HELLO, stream=True, **FIELDS) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert list(response.iter_lines())[-2:] == ["data: [DONE]", ""]


def test_openai_stream_helper(client, model, whole):
    stop = whole[len(whole) // 2 :][:3]
    with client.chat.completions.stream(model=model, messages=HELLO, stop=stop, **FIELDS) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == whole[: whole.index(stop)]
    assert final.choices[0].finish_reason == "stop"


def test_openai_leaves_a_stream(client, model, server_process):
    stream = client.chat.completions.create(
        model=model, messages=HELLO, stream=True, max_tokens=1500, extra_body={"ignore_eos": True}
    )
    with stream:
        next(iter(stream))
    eventually(lambda: server_process.stats()["num_requests_running"] == 0)
    assert server_process.stats()["pages"]["referenced"] == 0


def retried(monkeypatch, service, mend):
    """The seconds that OpenAI's client waits by itself before an attempt that succeeds; nobody waits."""
    waits = []

    def wait(seconds):
        waits.append(seconds)
        mend()

    monkeypatch.setattr("openai._base_client.time", SimpleNamespace(**(vars(time) | {"sleep": wait})))
    with openai.OpenAI(**options(service.url, max_retries=2)) as client:
        answer = client.chat.completions.create(model=served(service.engine), messages=HELLO)
    assert answer.choices[0].message.content
    return waits


def test_openai_comes_back_to_a_dead_engine_when_told(monkeypatch):
    engine = ScriptedEngine()
    engine.alive, engine.retry_after = False, 17
    with live(engine) as service:
        assert retried(monkeypatch, service, lambda: setattr(engine, "alive", True)) == [17]


def test_openai_comes_back_to_a_full_server_when_told(monkeypatch):
    engine = ScriptedEngine("word " * 4000, pause=0.01)
    with live(engine, limits=Limits(max_requests=1)) as service, httpx.Client(trust_env=False) as other:
        body = {"message": "hi", "stream": True, "max_tokens": 4000}
        with other.stream("POST", f"{service.url}/chat", json=body) as first:
            arriving = first.iter_bytes()  # Kept: dropping it closes the connection.
            next(arriving)

            def leave():
                first.close()
                engine.script = engine.script[:3]
                service.idle()

            waits = retried(monkeypatch, service, leave)
        assert len(waits) == 1
        assert 1 <= waits[0] <= 60
        assert waits[0] == int(waits[0])  # Its own choice is a fraction of a second.


async def ask_asynchronously(url, ask):
    async with openai.AsyncOpenAI(**options(url, timeout=0.3)) as client:
        await client.chat.completions.create(**ask)


def ask_synchronously(url, ask):
    with openai.OpenAI(**options(url, timeout=0.3)) as client:
        client.chat.completions.create(**ask)


@pytest.mark.parametrize("asked", [ask_synchronously, lambda url, ask: asyncio.run(ask_asynchronously(url, ask))])
@pytest.mark.parametrize("stream", [False, True])
def test_openai_gives_up_waiting(stream, asked):
    """A client whose time is over leaves nothing behind."""
    engine = ScriptedEngine(pause=600)
    with live(engine) as service:
        with pytest.raises(openai.APITimeoutError):
            asked(service.url, {"model": "scripted", "messages": HELLO, "stream": stream})
        service.idle()
        assert len(engine.aborted) == len(engine.calls) <= 1


def test_httpx_sse(server, whole, model):
    """Events as a parser of the standard reads them."""
    asked = FIELDS | FIELDS["extra_body"] | {"stream": True}
    del asked["extra_body"]
    with httpx.Client(base_url=server, trust_env=False, timeout=60) as client:
        texts = []
        for path, body in (("/chat", {"message": HELLO[0]["content"]}), ("/v1/chat/completions", {"messages": HELLO})):
            with httpx_sse.connect_sse(client, "POST", path, json=asked | body) as source:
                events = list(source.iter_sse())
            assert all(event.event == "message" for event in events)
            texts.append([event.data for event in events])
    chat, completion = texts
    assert "".join(json.loads(data)["delta"] for data in chat) == whole
    assert completion.pop() == "[DONE]"
    chunks = [json.loads(data) for data in completion]
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == whole
    assert {chunk["model"] for chunk in chunks} == {model}


def scored(client, prompts):
    """What lm-evaluation-harness sends as "local-completions" to score texts; choices by prompt."""
    body = {"prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    answer = client.post("/v1/completions", json=body | {"model": client.get("/v1/models").json()["data"][0]["id"]})
    return sorted(answer.json()["choices"], key=itemgetter("index"))


def test_an_evaluation_harness_scores(server):
    """It sums the entries behind the context, all but the generated one, and compares each with the likeliest."""
    with httpx.Client(base_url=server, trust_env=False, timeout=60) as client:
        together = scored(client, PROMPTS)
        assert len(together) == len(PROMPTS)
        for prompt, choice in zip(PROMPTS, together, strict=True):
            lists = choice["logprobs"]
            assert len(lists["token_logprobs"]) == len(lists["top_logprobs"]) == len(prompt) + 1
            for context in range(1, len(prompt)):
                own, top = (lists[name][context:-1] for name in ("token_logprobs", "top_logprobs"))
                assert len(own) == len(prompt) - context
                assert all(value <= max(best.values()) <= 0 for value, best in zip(own, top, strict=True))
            (alone,) = scored(client, [prompt])
            assert alone["logprobs"]["token_logprobs"][1:] == pytest.approx(lists["token_logprobs"][1:], abs=1e-5)
        # What the model itself would say scores as greedy.
        greedy = {"prompt": PROMPTS[0], "max_tokens": 5, "temperature": 0, "ignore_eos": True, "logprobs": 0}
        said = client.post("/v1/completions", json=greedy).json()["choices"][0]["logprobs"]["token_logprobs"]
        tokens = client.post("/v1/completions", json=greedy | {"echo": True}).json()["choices"][0]
        assert tokens["logprobs"]["token_logprobs"][len(PROMPTS[0]) :] == said


def test_an_evaluation_harness_generates(server):
    body = {"prompt": PROMPTS, "max_tokens": 6, "temperature": 0, "stop": ["\n\n", "Question:"], "seed": 1234}
    with httpx.Client(base_url=server, trust_env=False, timeout=60) as client:
        choices = client.post("/v1/completions", json=body).json()["choices"]
        alone = [client.post("/v1/completions", json=body | {"prompt": [one]}).json()["choices"] for one in PROMPTS]
    texts = {choice["index"]: choice["text"] for choice in choices}
    assert texts == {place: answer[0]["text"] for place, answer in enumerate(alone)}
    assert all("\n\n" not in text and "Question:" not in text for text in texts.values())
