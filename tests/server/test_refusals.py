"""Bad requests: the right status, OpenAI's error shape, and a server that goes on."""

from __future__ import annotations

import json
from itertools import product

import pytest

from paceline.server import Limits
from tests.support.http_calls import HELLO, JSON, assert_error, call, chat, complete
from tests.support.scripted_engine import ScriptedEngine

ENGINE = ScriptedEngine()
BIG = 10**30


def raw(body, *, headers=JSON, **options):
    return call(ENGINE, "POST", "/v1/chat/completions", content=body, headers=headers, **options)


@pytest.fixture(autouse=True)
def _a_good_request_still_works():
    ENGINE.calls.clear()
    yield
    assert ENGINE.calls == []
    assert complete(ENGINE, max_tokens=1).status_code == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *product(("temperature", "top_p", "min_p", "presence_penalty"), ("1", True, [], -3, BIG)),
        *product(("n", "max_tokens", "max_completion_tokens"), (0, -2, BIG, 1.5, "2", True)), ("n", -1),
        *product(("seed", "top_k"), (2**63, -(2**63) - 1, BIG, 1.0, "7", True)),
        ("n", 65), ("min_tokens", -1), ("repetition_penalty", 0), ("frequency_penalty", 2.5),
        ("top_logprobs", 21), ("top_logprobs", 1), ("top_logprobs", -1), ("logprobs", 1), ("logprobs", "true"),
        ("stop", ""), ("stop", ["a"] * 17), ("stop", ["x" * 1025]), ("stop", [1]),
        ("stop", ["a", None]), ("stop", {"a": 1}),
        ("logit_bias", {"-1": 1}), ("logit_bias", {"x": 1}), ("logit_bias", {"1": "1"}), ("logit_bias", {"1": 101}),
        ("logit_bias", [1]), ("logit_bias", {str(token): 1 for token in range(4097)}), ("logit_bias", {"9" * 30: 1}),
        ("logit_bias", {"5": 1, "05": 2}), ("logit_bias", {"00": 1}),
        ("stop_token_ids", [-1]), ("stop_token_ids", [True]), ("stop_token_ids", [[1]]), ("stop_token_ids", 3),
        ("allowed_token_ids", []), ("bad_words", [""]), ("bad_words", ["x" * 1025]),
        ("bad_words", ["x"] * 4097), ("bad_words", ["x" * 500] * 4000), ("ignore_eos", 1),
        ("stream", "yes"), ("speculation", "off"),
        ("stream_options", 1), ("skip_special_tokens", 0),
        ("messages", []), ("messages", "hi"), ("messages", [1]), ("messages", None), ("messages", {}),
        ("trust_remote_code", True), ("lora_path", "/etc"), ("chat_template", "{{ 1 }}"), ("best_of", 2),
        ("guided_regex", "a"),
        ("tools", [{"type": "function"}]), ("response_format", {"type": "json_object"}), ("tool_choice", "required"),
        ("reasoning_effort", "high"), ("prompt_logprobs", 1), ("model", 3),
    ],
)  # fmt: skip
def test_bad_fields(field, value):
    error = assert_error(complete(ENGINE, **{field: value}), 400, param=None)
    assert len(error["message"]) < 500
    assert error["param"] is not None


def test_min_tokens_above_max_tokens():
    assert_error(complete(ENGINE, min_tokens=5, max_tokens=4), 400, param="min_tokens")
    assert_error(complete(ENGINE, max_tokens=5, max_completion_tokens=4), 400, param="max_tokens")


@pytest.mark.parametrize("value", [0, -2, BIG, 2**31])
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_limit_out_of_range_is_reported_before_two_that_differ(field, value):
    other = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}[field]
    for fields in ({field: value}, {field: value, other: 5}, {other: 5, field: value}):
        error = assert_error(complete(ENGINE, **fields), 400, param=field)
        assert "differs" not in error["message"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "-1e400"])
@pytest.mark.parametrize("field", ["temperature", "logit_bias", "seed", "max_tokens"])
def test_numbers_that_json_does_not_have(number, field):
    value = f'{{"3": {number}}}' if field == "logit_bias" else number
    body = f'{{"model": "scripted", "messages": {json.dumps(HELLO)}, "{field}": {value}}}'
    assert_error(raw(body), 400)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"3", b"null", b'"x"', b"\xff\xfe", b'{"model": "\xff"}', b"[" * 200_000, b'{"a":' * 200_000,
        b'{"model": "scripted", "messages": "' + b"[" * 1000 + b'"}', b"\x00", b'{"model": "scripted"}',
    ],
)  # fmt: skip
def test_bodies_that_are_no_requests(body):
    assert_error(raw(body), 400)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "x"}, {"role": "end", "content": "x"}, {"role": "user|>", "content": "x"},
        {"content": "x"},
        {"role": "user", "content": 3}, {"role": "user", "content": "\ud800"}, {"role": "user", "content": ["x"]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}]},
        {"role": "user", "content": [{"type": "input_audio"}]}, {"role": "user", "content": [{"text": "x"}]},
        {"role": "user", "content": [{"type": "text", "text": "\udfff"}]},
        {"role": "user", "content": [{"type": "text"}]},
        {"role": "user", "content": [{"type": 3}]}, {"role": "function", "content": "x", "name": "f"},
        {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]},
        {"role": "user", "content": "x", "name": 3},
    ],
)  # fmt: skip
def test_bad_messages(message):
    response = raw(json.dumps({"model": "scripted", "messages": [message]}))
    assert_error(response, 400, param="messages")


@pytest.mark.parametrize("name", ["../../etc/passwd", "a\0b", "%2e%2e", "x" * 10_000, "", "gpt-4"])
def test_unknown_models(name):
    error = assert_error(complete(ENGINE, model=name), 404, code="model_not_found")
    assert len(error["message"]) < 300
    if name:
        path = name.replace("\0", "%00").replace("..", "%2e%2e")
        assert_error(call(ENGINE, "GET", f"/v1/models/{path}"), 404)


def test_chat_needs_exactly_one_of_message_and_messages():
    for body in ({}, {"message": "a", "messages": HELLO}, {"message": ""}, {"message": 3}, {"messages": []}, {"n": 2}):
        assert_error(chat(ENGINE, **body), 400)
    assert_error(chat(ENGINE, message="hi", model="other"), 404, code="model_not_found")


def test_routes_and_methods():
    assert_error(call(ENGINE, "GET", "/nope"), 404)
    assert_error(call(ENGINE, "POST", "/v2/chat/completions", content=b"{}", headers=JSON), 404)
    response = call(ENGINE, "GET", "/v1/chat/completions")
    assert_error(response, 405)
    assert response.headers["allow"] == "POST"
    for path in ("/docs", "/redoc"):
        assert_error(call(ENGINE, "GET", path), 404)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_content_types(kind):
    assert_error(raw(b"{}", headers={"Content-Type": kind}), 415)


def test_bodies_over_the_limit():
    limits = Limits(max_body_bytes=1000)
    body = json.dumps({"model": "scripted", "messages": [{"role": "user", "content": "x" * 2000}]}).encode()
    read = []

    async def chunks():
        for start in range(0, len(body), 100):
            read.append(start)
            yield body[start : start + 100]

    assert_error(raw(body, limits=limits), 413)
    response = raw(chunks(), limits=limits)
    assert_error(response, 413)
    assert response.headers["connection"] == "close"
    assert_error(raw(b"{}", headers=JSON | {"Content-Length": "9" * 4000}, limits=limits), 413)


def test_a_prompt_over_the_context():
    response = complete(ENGINE, messages=[{"role": "user", "content": "hello " * 5000}])
    assert_error(response, 400, code="context_length_exceeded")


def test_no_tokenizer_no_chat():
    assert_error(complete(ScriptedEngine(tokenizer=False)), 400, param="messages")
