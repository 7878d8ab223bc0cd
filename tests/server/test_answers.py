"""What good requests get, streaming and not."""

from __future__ import annotations

import pytest

from tests.support.http_calls import HELLO, assert_error, call, chat, complete, events
from tests.support.scripted_engine import ScriptedEngine

ANSWER = "Hello wörld, this is an answer."
METRICS = {
    "drafted_tokens",
    "accepted_tokens",
    "mean_acceptance_length",
    "time_to_first_token",
    "time_per_output_token",
}


def test_a_whole_completion():
    engine = ScriptedEngine()
    body = complete(engine, max_tokens=100).json()
    assert body["object"] == "chat.completion"
    (choice,) = body["choices"]
    assert choice["message"]["content"] == ANSWER
    assert choice["finish_reason"] == "length"
    assert "".join(choice["paceline"]["tokens"]).startswith("Hello w")
    assert len(choice["paceline"]["drafted"]) == body["usage"]["completion_tokens"] == len(engine.script)
    prompt = engine.calls[0][0]
    assert body["usage"]["prompt_tokens"] == len(prompt)
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}
    assert set(body["paceline"]) >= METRICS
    assert prompt == engine.tokenizer.encode_chat(HELLO)


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_joins_to_the_whole(n):
    response = complete(ScriptedEngine(), stream=True, n=n, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, last, done = events(response)
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == n * len(ScriptedEngine().script)
    assert all(chunk["usage"] is None for chunk in chunks)
    for index in range(n):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(choice["delta"]["content"] for choice in mine) == ANSWER
        assert mine[-1]["finish_reason"] == "length"
        assert not any("\ufffd" in choice["delta"]["content"] for choice in mine)
    drafted = [
        flag for chunk in chunks[n:] if chunk["choices"][0]["index"] == 0 for flag in chunk["paceline"]["drafted"]
    ]
    assert drafted == [count % 2 == 0 for count in range(1, len(drafted) + 1)]
    assert set(chunks[-1]["paceline"]) >= METRICS


def test_without_usage_no_usage_chunk():
    chunks = events(complete(ScriptedEngine(), stream=True))
    assert all("usage" not in chunk for chunk in chunks[:-1])
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings(stream):
    response = complete(ScriptedEngine(), stop=["nope", "this is"], stream=stream)
    choice = events(response)[-2]["choices"][0] if stream else response.json()["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "this is")
    if stream:
        text = "".join(c["choices"][0]["delta"]["content"] for c in events(response)[:-1])
    else:
        text = choice["message"]["content"]
    assert text == "Hello wörld, "


def test_logprobs():
    content = complete(ScriptedEngine("é!"), logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(item["bytes"]) for item in content).decode() == "é!"
    assert content[0]["top_logprobs"][1]["logprob"] == -9999.0
    assert complete(ScriptedEngine()).json()["choices"][0]["logprobs"] is None
    assert complete(ScriptedEngine(), logprobs=False).json()["choices"][0]["logprobs"] is None
    chunk = events(complete(ScriptedEngine(), logprobs=True, stream=True))[1]
    assert len(chunk["choices"][0]["logprobs"]["content"]) == 1


def test_every_control_reaches_the_engine():
    fields = {
        "temperature": 0, "top_p": 0.5, "top_k": 4, "min_p": 0.1, "presence_penalty": 1, "frequency_penalty": -1,
        "repetition_penalty": 1.5, "seed": -5, "min_tokens": 2, "ignore_eos": True, "bad_words": ["x"],
        "include_stop_str_in_output": True, "skip_special_tokens": False,
    }  # fmt: skip
    lists = {"stop_token_ids": [3], "stop": ["zz"], "allowed_token_ids": [1, 2]}
    engine = ScriptedEngine()
    response = complete(
        engine,
        **fields,
        **lists,
        n=2,
        logit_bias={"7": -100},
        max_completion_tokens=9,
        logprobs=True,
        speculation=False,
    )
    assert response.status_code == 200, response.text
    _, params, options = engine.calls[0]
    assert {name: getattr(params, name) for name in fields} == fields | {"bad_words": ("x",)}
    assert {name: list(getattr(params, name)) for name in lists} == lists
    assert (params.n, params.max_tokens, params.logprobs, params.logit_bias) == (2, 9, 0, {7: -100})
    assert options.speculate is False


def test_null_and_neutral_fields_are_the_defaults():
    engine = ScriptedEngine()
    neutral = {
        "temperature": None,
        "stop": None,
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
    }
    assert complete(engine, **neutral, user="me", metadata={"a": 1}, seed=None, n=None).status_code == 200
    _, params, options = engine.calls[0]
    assert (params.temperature, params.n, params.max_tokens, options.speculate) == (1.0, 1, 2048, True)


def test_no_limit_named_is_the_default_or_what_fits():
    engine = ScriptedEngine()
    for longest in (4096, 100, 50):
        engine.max_model_len = longest
        assert complete(engine).status_code == 200
        prompt, params, _ = engine.calls[-1]
        assert params.max_tokens == min(2048, longest - len(prompt))
    assert complete(engine, max_tokens=3000).status_code == 200
    assert engine.calls[-1][1].max_tokens == 3000


def test_messages_of_every_shape():
    engine = ScriptedEngine()
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": None, "audio": None},
        {"role": "user", "content": "NUL \0 and <|end|> stay text"},
    ]
    assert complete(engine, messages=messages).status_code == 200
    prompt = engine.calls[0][0]
    text = engine.tokenizer.decode(prompt, skip_special_tokens=False)
    assert text.startswith("<|bos|><|system|>be brief<|end|><|user|>a\nb<|end|><|assistant|><|end|>")
    assert prompt.count(engine.tokenizer.eos_token_id) == 4


def test_chat():
    engine = ScriptedEngine()
    body = chat(engine, message="hello").json()
    assert body["text"] == ANSWER
    assert set(body["metrics"]) >= METRICS
    assert body["usage"]["total_tokens"] == len(engine.calls[0][0]) + len(engine.script)
    assert (body["finish_reason"], body["model"]) == ("length", "scripted")
    assert chat(engine, messages=HELLO, max_tokens=3).json()["usage"]["completion_tokens"] == 3
    assert engine.calls[0][0] == engine.calls[1][0]


def test_chat_as_a_stream():
    *parts, last = events(chat(ScriptedEngine(), message="hello", stream=True))
    assert "".join(part["delta"] for part in parts) == ANSWER
    assert all(len(part["tokens"]) == len(part["drafted"]) == 1 for part in parts)
    assert set(last["metrics"]) >= METRICS
    assert last["usage"]["completion_tokens"] == len(parts)


def test_health_models_and_statistics():
    engine = ScriptedEngine()
    assert call(engine, "GET", "/health").json() == {"status": "ok", "model": "scripted"}
    (model,) = call(engine, "GET", "/v1/models").json()["data"]
    assert (model["id"], model["max_model_len"]) == ("scripted", 4096)
    # Each app tells its own time of creation.
    assert call(engine, "GET", "/v1/models/scripted").json() | {"created": model["created"]} == model
    assert call(engine, "GET", "/stats").json() == engine.stats()
    engine.alive = False
    assert_error(call(engine, "GET", "/health"), 503, code="engine_dead")


@pytest.mark.parametrize(
    ("given", "served"),
    [("/data/models/tiny-llama/", "tiny-llama"), ("./tiny", "tiny"), ("owner/model", "owner/model"), ("pair", "pair")],
)
def test_a_models_directory_is_not_shown(given, served):
    engine = ScriptedEngine()
    engine.model_name = given
    assert call(engine, "GET", "/v1/models").json()["data"][0]["id"] == served
    assert complete(engine, model=served).json()["model"] == served


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": HELLO}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/embeddings", {"input": "a"}),
    ],
)
def test_the_model_need_not_be_named(path, fields):
    for body in (fields, fields | {"model": None}):
        answer = call(ScriptedEngine(), "POST", path, json=body)
        assert (answer.status_code, answer.json()["model"]) == (200, "scripted")
    assert_error(call(ScriptedEngine(), "POST", path, json=fields | {"model": "other"}), 404, code="model_not_found")
