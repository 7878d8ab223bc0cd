"""Hostile input on real sockets, before a real engine: the right refusal, nobody disturbed, no page lost."""

from __future__ import annotations

import gzip
import json
import sys
import threading
from contextlib import contextmanager

import pytest

from paceline import LLM
from paceline.engine.worker import EngineWorker
from paceline.server import chat_completions
from tests.support.http_calls import HELLO, JSON, assert_error, call, complete
from tests.support.live_service import call_body, live, post
from tests.support.scripted_engine import ScriptedEngine

HOST = b"Host: localhost\r\n"
CHUNKED = b"POST /chat HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"


@pytest.fixture(scope="module")
def service(tiny):
    worker = EngineWorker(LLM(str(tiny[0]), num_blocks=200, max_num_seqs=4))
    with live(worker) as service:
        yield service
    worker.close()


@pytest.fixture(autouse=True)
def _others_are_served(request):
    yield
    if "service" in request.fixturenames:
        request.getfixturevalue("service").good()


WIRE = {
    "garbage": b"\x00\x01\x02\x03\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64 + b"\r\n\r\n",
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "version": b"GET /health HTTP/9.9\r\n" + HOST + b"\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\n" + HOST + b"Host: 127.0.0.1\r\n\r\n",
    "two lengths": post(b"{}", headers=["Content-Length: 3"]),
    "length and chunked": post(b"0\r\n\r\n", headers=["Transfer-Encoding: chunked"]),
    "negative length": post(b"").replace(b"Length: 0", b"Length: -1"),
    "length in words": post(b"").replace(b"Length: 0", b"Length: 1e3"),
    "plus length": post(b"").replace(b"Length: 0", b"Length: +0"),
    "chunk size": CHUNKED + b"\r\nzz\r\n\r\n",
    "endless chunk size": CHUNKED + b"\r\n" + b"F" * 40 + b"\r\n",
    "two encodings": CHUNKED + b"Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
    "unknown encoding": CHUNKED.replace(b"chunked", b"gzip") + b"\r\n",
    "space before colon": b"GET /health HTTP/1.1\r\nHost : localhost\r\n\r\n",
    "NUL in a header": b"GET /health HTTP/1.1\r\n" + HOST + b"X: a\x00b\r\n\r\n",
    "bare CR": b"GET /health HTTP/1.1\r\n" + HOST + b"X: a\rY: b\r\n\r\n",
    "CONNECT": b"CONNECT example.org:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a proxy's request": b"GET http://example.org/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "dots": b"GET /../../../../etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n",
    "encoded dots": b"GET /v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd HTTP/1.1\r\n" + HOST + b"\r\n",
    "encoded NUL": b"GET /v1/models/a%00b HTTP/1.1\r\n" + HOST + b"\r\n",
    "broken encoding": b"GET /v1/models/%ff%zz%u1234 HTTP/1.1\r\n" + HOST + b"\r\n",
    "raw bytes in the path": b"GET /v1/models/\xff\xfe HTTP/1.1\r\n" + HOST + b"\r\n",
    "unknown method": b"BREW /chat HTTP/1.1\r\n" + HOST + b"\r\n",
    "trace": b"TRACE /chat HTTP/1.1\r\n" + HOST + b"X-Secret: 1\r\n\r\n",
    "expectation": b"POST /chat HTTP/1.1\r\n" + HOST + b"Expect: 200-maybe\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("data", WIRE.values(), ids=WIRE)
def test_what_is_no_request(service, data):
    reply = service.exchange(data)
    assert reply.status in (400, 403, 404, 405, 415, 501, 505), reply.body
    assert reply.error["message"]
    assert b"Traceback" not in reply.body
    assert b"X-Secret" not in reply.body
    assert reply.headers["content-type"] == "application/json"


def test_a_second_request_hidden_in_a_body_is_no_request(service):
    hidden = b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n"
    connection = service.connect(post(hidden, path="/nope") + b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n")
    data = b""
    while data.count(b"HTTP/1.1 ") < 2:
        data += connection.recv(65536)
    assert data.startswith(b"HTTP/1.1 404")
    assert b"HTTP/1.1 200" in data
    assert b'"object":"list"' not in data


def test_many_requests_sent_at_once_on_one_connection(service):
    connection = service.connect((b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n") * 50)
    data = b""
    while data.count(b'"status":"ok"') < 50:
        data += connection.recv(65536)
    assert data.count(b"HTTP/1.1 200") == 50


def message(text: str) -> bytes:
    """A body with ``text`` as JSON spells it."""
    return b'{"model": "target", "max_tokens": 1, "messages": [{"role": "user", "content": "%s"}]}' % text.encode()


def field(text: str) -> bytes:
    return b'{"model": "target", "messages": [{"role": "user", "content": "x"}], %s}' % text.encode()


BODIES = {
    "empty": b"",
    "no JSON": b"hello",
    "two values": b"{}{}",
    "array": b"[]",
    "array of requests": b"[" + message("hi") + b"]",
    "string": b'"x"',
    "null": b"null",
    "deep arrays": b"[" * 500_000,
    "deep objects": b'{"a":' * 200_000,
    "deep in a field": field('"user": ' + "[" * 100_000 + "]" * 100_000),
    "deep in a message": b'{"model": "target", "messages": ' + b"[" * 900 + b"]" * 900 + b"}",
    "deep and half a pair": b'{"model": "\\ud800", "messages": ' + b"[" * 900 + b"]" * 900 + b"}",
    "5000 digits": field('"seed": ' + "9" * 5000),
    "30 digits": field('"seed": ' + "9" * 30),
    "NaN": field('"temperature": NaN'),
    "infinity": field('"temperature": 1e999'),
    "bias of infinity": field('"logit_bias": {"1": -Infinity}'),
    "bad UTF-8": b'{"model": "\xff\xfe"}',
    "overlong UTF-8": b'{"model": "\xc0\xaf"}',
    "encoded surrogate": b'{"model": "\xed\xa0\x80"}',
    "UTF-16": message("hi").decode().encode("utf-16"),
    "byte order mark twice": b"\xef\xbb\xbf" * 2 + message("hi"),
    "gzip": gzip.compress(message("hi")),
    "name twice": field('"seed": 1, "seed": 2'),
    "name twice, deeper": message("hi").replace(b'"role"', b'"role": "system", "role"'),
    "half a pair": message("\\ud800"),
    "half a pair, reversed": message("\\udc00\\ud83d"),
    "half a pair in a stop string": field('"stop": ["\\udfff"]'),
    "half a pair in a name": field('"\\ud800": 1'),
    "half a pair in an ignored field": field('"user": "\\ud800"'),
    "raw control character": message("a\nb"),
    "bad escape": message("\\x41"),
    "image": b'{"model": "target", "messages": [{"role": "user", "content": '
    b'[{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]}',
    "a prompt over the context": message("hello " * 5000),
    "endless bad word": field(f'"bad_words": ["{"x" * 1_000_000}"]'),
    "many long bad words": field(f'"bad_words": {json.dumps(["y" * 450] * 4000)}'),
    "endless stop": field(f'"stop": "{"x" * 1_000_000}"'),
    "a million biases": field('"logit_bias": {' + ",".join(f'"{token}": 1' for token in range(100_000)) + "}"),
    "too many answers": field('"n": 1000000'),
    "remote code": field('"trust_remote_code": true'),
    "adapter": field('"lora_path": "/etc/passwd"'),
    "adapter request": field('"lora_request": {"path": "/"}'),
    "template": field('"chat_template": "{{ cycler.__init__.__globals__.os.popen(1) }}"'),
    "template arguments": field('"chat_template_kwargs": {"tokenize": true}'),
    "processors": field('"logits_processors": ["os.system"]'),
    "media": field('"mm_processor_kwargs": {"num_crops": 99999}'),
}  # fmt: skip


@pytest.mark.parametrize("name", ["__class__", "__proto__", "__init__", "model_config", "rules", "of"])
def test_names_of_the_schema_s_own_parts_are_unknown_fields(service, name):
    reply = service.exchange(post(field(f'"max_tokens": 1, "{name}": {{"stream": true}}')))
    assert (reply.status, reply.headers["x-ignored-fields"]) == (200, name)


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_bodies_that_are_refused(service, body):
    before = service.engine.stats()["num_steps"]
    reply = service.exchange(post(body))
    assert reply.status == 400, reply.body
    assert len(reply.error["message"]) < 500
    assert reply.body.decode("utf-8").isascii()
    assert service.engine.stats()["num_steps"] == before


@pytest.mark.parametrize(
    "text", ["\\u0000", "a\\u0000b", "\\ud83d\\ude42", "🙂", "\\u202e\\ufeff", "<|end|>", "{{ 7 }}"]
)
def test_texts_that_are_served(service, text):
    assert service.exchange(post(message(text))).status == 200


@pytest.mark.parametrize(
    "kinds",
    [
        [], ["text/plain"], ["application/x-www-form-urlencoded"], ["multipart/form-data; boundary=x"], ["text/json"],
        ["application/json-patch+json"], ["application/json, text/plain"], ["application/json", "text/plain"],
        ["application/json", "application/json"], ["application/jsonx"], ["\xff"],
    ],
    ids=str,
)  # fmt: skip
def test_content_types(service, kinds):
    """A web page can send these without asking first, so that they must not pass for JSON."""
    data = post(message("hi")).replace(b"Content-Type: application/json\r\n", b"")
    lines = "".join(f"Content-Type: {kind}\r\n" for kind in kinds).encode("latin-1")
    reply = service.exchange(data.replace(b"\r\n\r\n", b"\r\n" + lines + b"\r\n", 1))
    assert reply.status == 415
    assert reply.error


def test_the_controls_of_these_tests(service):
    """What the tables above break is served when it is whole."""
    assert service.exchange(post(message("hi"))).status == 200
    assert service.exchange(post(field('"seed": 3, "max_tokens": 1'))).status == 200
    chunked = CHUNKED + b"\r\n" + b"10\r\n" + b'{"message": "h",' + b"\r\n" + b"11\r\n" + b' "max_tokens": 1}' + b"\r\n"
    assert service.exchange(chunked + b"0\r\n\r\n").status == 200


_watching: list[str] | None = None


def _hook(event, arguments):
    if _watching is not None and event.partition(".")[0] in ("open", "os", "socket", "subprocess", "shutil", "glob"):
        _watching.append(f"{event} {arguments}")


sys.addaudithook(_hook)


@contextmanager
def watched():
    """Collects what touches files, processes and the network."""
    global _watching  # noqa: PLW0603 (an audit hook cannot be taken away)
    seen = _watching = []
    try:
        yield seen
    finally:
        _watching = None


NAMES = [
    "../../etc/passwd",
    "/etc/passwd",
    "%2e%2e/%2e%2e/etc",
    "a\0b",
    "~",
    "file:///etc/passwd",
    "scripted/..",
    "C:\\x",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_models_name_reaches_no_file(name):
    engine = ScriptedEngine()
    complete(engine, max_tokens=1)  # whatever is loaded at the first call
    with watched() as seen:
        assert_error(complete(engine, model=name), 404, code="model_not_found")
        path = name.replace("\0", "%00").replace("..", "%2e%2e")
        assert_error(call(engine, "GET", f"/v1/models/{path}"), 404)
        image = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}
        assert_error(complete(engine, messages=[{"role": "user", "content": [image]}]), 400, param="messages")
    outside = [event for event in seen if not event.startswith(("socket.__new__", "socket.bind"))]
    assert outside == []


def test_the_watch_sees_files():
    with watched() as seen, open(__file__):
        pass
    assert any("test_attacks" in event for event in seen)


def test_tokens_are_made_beside_the_event_loop(monkeypatch, service):
    """A long prompt holds nobody up."""
    threads = []
    encode = service.engine.tokenizer.encode_chat
    monkeypatch.setattr(
        service.engine.tokenizer,
        "encode_chat",
        lambda *given, **more: threads.append(threading.current_thread().name) or encode(*given, **more),
    )
    assert service.exchange(post(call_body(service.engine, max_tokens=1))).status == 200
    assert len(threads) == 1
    assert threads[0].startswith("asyncio_")


def test_a_text_that_is_far_too_long_is_not_even_tokenised(monkeypatch):
    engine = ScriptedEngine()
    monkeypatch.setattr(engine.tokenizer, "encode_chat", None)
    monkeypatch.setattr(engine.tokenizer, "encode", None)
    text = "x" * (32 * engine.max_model_len + 1)
    response = complete(engine, messages=[{"role": "user", "content": text}])
    error = assert_error(response, 400, param="messages", code="context_length_exceeded")
    assert "this model's maximum context length is 4096 tokens" in error["message"]
    body = json.dumps({"model": "scripted", "prompt": ["hi", text]})
    monkeypatch.setattr(engine.tokenizer, "encode", lambda *given, **more: [1])
    response = call(engine, "POST", "/v1/completions", content=body, headers=JSON)
    assert_error(response, 400, param="prompt", code="context_length_exceeded")
    for name, given in (("prompt", text), ("messages", [{"role": "user", "content": text}])):
        response = call(engine, "POST", "/tokenize", json={name: given})
        assert_error(response, 400, param=name, code="context_length_exceeded")


def test_a_prompt_that_cannot_fit_does_not_reach_the_engine(monkeypatch):
    engine = ScriptedEngine()
    monkeypatch.setattr(engine, "generate", None)
    for prompt in ([7] * engine.max_model_len, [[7], [7] * 40_000]):
        response = call(engine, "POST", "/v1/completions", json={"model": "scripted", "prompt": prompt})
        assert_error(response, 400, param="prompt", code="context_length_exceeded")


def test_an_answer_is_written_beside_the_event_loop(monkeypatch):
    """Many answers with their alternatives make megabytes."""
    threads = []
    write = chat_completions.logprobs_dict
    monkeypatch.setattr(
        chat_completions,
        "logprobs_dict",
        lambda *given: threads.append(threading.current_thread().name) or write(*given),
    )
    assert complete(ScriptedEngine(), n=2, logprobs=True).status_code == 200
    assert len(threads) == 2
    assert all(name.startswith("asyncio_") for name in threads)


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_inside_tells_nothing(stream):
    """No path, address, name or line of ours, whatever goes wrong."""
    for fault in (
        RuntimeError("/srv/x.py at 0x7f00deadbeef"), KeyError("password"), OSError(2, "No such file", "/etc/shadow"),
        ZeroDivisionError(), RecursionError("x" * 10_000), UnicodeError("é\ud800"), AssertionError(), MemoryError(),
        ExceptionGroup("several", [ValueError("secret"), ValueError("secret")]), StopAsyncIteration("secret"),
    ):  # fmt: skip
        response = complete(ScriptedEngine(fault=fault, fault_after=2), stream=stream)
        assert response.status_code == (200 if stream else 500)
        error = json.loads(response.text.strip().rpartition("data: ")[2])["error"]
        assert error == {"message": "internal server error", "type": "server_error", "param": None, "code": None}
        assert HELLO[0]["content"] not in response.text.rpartition("data: ")[2]
