"""Requests as clients spell them: names, methods, slashes, absolute targets, compressed bodies, hosts, other keys."""

from __future__ import annotations

import gzip
import json
import logging
import time

import httpx
import openai
import pytest

from paceline.core.service_config import ServiceConfig
from tests.server.test_auth import ask_all, bearer
from tests.support.http_calls import HELLO, JSON, assert_error, call, complete, events, post
from tests.support.live_service import live
from tests.support.scripted_engine import ScriptedEngine

NAMES = ServiceConfig(served_model_name=("gpt-4o", "own/name"))
GETS = ["/health", "/ready", "/version", "/stats", "/metrics", "/openapi.json", "/v1/models", "/v1/models/scripted"]


@pytest.mark.parametrize("name", ["gpt-4o", "own/name", None])
def test_a_model_goes_by_each_of_its_names(name):
    answer = post(ScriptedEngine(), "/v1/chat/completions", config=NAMES, messages=HELLO, model=name)
    assert (answer.status_code, answer.json()["model"]) == (200, "gpt-4o")
    if name is not None:
        assert call(ScriptedEngine(), "GET", f"/v1/models/{name}", config=NAMES).json()["id"] == name


def test_only_those_names_are_listed_and_known():
    listed = call(ScriptedEngine(), "GET", "/v1/models", config=NAMES).json()["data"]
    assert [model["id"] for model in listed] == ["gpt-4o", "own/name"]
    error = assert_error(post(ScriptedEngine(), "/chat", config=NAMES, message="a"), 404, code="model_not_found")
    assert "gpt-4o, own/name" in error["message"]


@pytest.mark.parametrize("path", GETS)
def test_head_is_get_without_a_body(path):
    with live(ScriptedEngine()) as service, httpx.Client(base_url=service.url, trust_env=False) as client:
        got, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == got.headers["content-type"]
        assert "HEAD" in client.post(path).headers["allow"]
    whole = call(ScriptedEngine(), "HEAD", path)
    assert (whole.status_code, whole.content) == (200, b"")


def test_head_of_what_has_no_get():
    answer = call(ScriptedEngine(), "HEAD", "/v1/chat/completions")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert call(ScriptedEngine(), "HEAD", "/nope").status_code == 404


@pytest.mark.parametrize("path", [*GETS, "/v1/models//"])
def test_trailing_slashes_of_get(path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1.8e9)  # "created" is of the second in which an engine was made
    answer = call(ScriptedEngine(), "GET", f"{path}/")
    assert answer.status_code == 200
    if path.startswith("/v1/models"):
        assert answer.json() == call(ScriptedEngine(), "GET", path.rstrip("/")).json()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions/", {"messages": HELLO}), ("/v1/completions/", {"prompt": "a"}),
        ("/chat/", {"message": "a"}),
        ("/v1/embeddings//", {"input": "a"}), ("/tokenize/", {"prompt": "a"}), ("/detokenize/", {"tokens": [5]}),
    ],
)  # fmt: skip
def test_trailing_slashes_of_post(path, body):
    assert post(ScriptedEngine(), path, **body).status_code == 200


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://localhost/v1/models", "localhost", 200), ("HTTP://LOCALHOST:99/v1/models/?a=b", "localhost", 200),
        ("http://localhost", "localhost", 404), ("https://127.0.0.1/health", "localhost", 200),
        ("http://localhost/v1/models", "evil.example", 200), ("http://evil.example/v1/models", "localhost", 403),
        ("http://localhost@evil.example/v1/models", "localhost", 404), ("ftp://localhost/v1/models", "localhost", 404),
        ("http:///v1/models", "localhost", 404), ("http://localhost:8000.evil.example/health", "localhost", 403),
    ],
)  # fmt: skip
def test_absolute_targets(target, host, status):
    """What the target names is what has to be allowed."""
    with live(ScriptedEngine(), config=ServiceConfig()) as service:
        assert service.exchange(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()).status == status


BODY = json.dumps({"message": "a"}).encode()
GZIPPED = gzip.compress(BODY, mtime=0)


@pytest.mark.parametrize(("coding", "content"), [("gzip", GZIPPED), ("br", BODY), ("identity, gzip", BODY)])
def test_compressed_bodies(coding, content):
    answer = call(ScriptedEngine(), "POST", "/chat", content=content, headers=JSON | {"Content-Encoding": coding})
    error = assert_error(answer, 415)
    assert "Content-Encoding" in error["message"]
    assert answer.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "identity"}, {"Content-Encoding": ""}])
def test_a_byte_order_mark_is_no_character(headers):
    answer = call(ScriptedEngine(), "POST", "/chat", content=b"\xef\xbb\xbf" + BODY, headers=JSON | headers)
    assert answer.status_code == 200


def test_a_refused_host_is_told_the_option_and_so_is_the_log(caplog):
    caplog.set_level(logging.WARNING)
    hosts = [
        "host.docker.internal:8000",
        "host.docker.internal",
        "a\tb",
        "x" * 300,
        *(f"h{n}.example" for n in range(40)),
    ]
    requests = [("GET", "/health", {"headers": {"Host": host}}) for host in hosts]
    answers = ask_all(ScriptedEngine(), requests, config=ServiceConfig())
    assert {answer.status_code for answer in answers} == {403}
    assert "--allowed-hosts host.docker.internal" in answers[0].json()["error"]["message"]
    assert caplog.text.count("--allowed-hosts host.docker.internal") == 1
    assert len(caplog.records) == 16


def test_a_page_on_a_wider_network():
    config = ServiceConfig(allowed_origins=("https://app.example",))
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Private-Network": "true"}
    for origin, allowed in (("https://app.example", "true"), ("https://other.example", None)):
        answer = call(ScriptedEngine(), "OPTIONS", "/chat", config=config, headers=ask | {"Origin": origin})
        got = answer.headers.get("access-control-allow-private-network") if answer.status_code == 200 else None
        assert got == allowed


KEY, WATCHER = "sk-all", "sk-metrics"


@pytest.mark.parametrize("keys", [(), (KEY,)])
def test_metrics_have_a_key_of_their_own(keys):
    config = ServiceConfig(api_key=keys, metrics_key=(WATCHER, "sk-second"))
    paths = ["/metrics", "/metrics/", "/stats", "/v1/models", "/metrics/x", "//metrics", "/health"]
    headers = [bearer(WATCHER), bearer("sk-second"), bearer(KEY), bearer("sk-none"), {}]
    found = ask_all(ScriptedEngine(), [("GET", path, {"headers": h}) for path in paths for h in headers], config=config)
    status = [answer.status_code for answer in found]
    rows = {path: status[5 * at : 5 * at + 5] for at, path in enumerate(paths)}
    assert rows["/metrics"] == rows["/metrics/"] == [200, 200, 200 if keys else 401, 401, 401]
    assert rows["/stats"] == rows["/v1/models"] == ([401, 401, 200, 401, 401] if keys else [200] * 5)
    assert rows["/metrics/x"] == rows["//metrics"] == ([401, 401, 404, 401, 401] if keys else [404] * 5)
    assert rows["/health"] == [200] * 5
    assert WATCHER not in repr(config)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
@pytest.mark.parametrize("stream", [False, True])
def test_extras_can_be_left_out(path, stream):
    body = {"/v1/completions": {"prompt": "a", "max_tokens": 9}, "/v1/embeddings": {"input": "a"}}.get(
        path, {"messages": HELLO}
    )
    body |= {"stream": stream} if path != "/v1/embeddings" else {}
    off, on = ServiceConfig(extras="off"), ServiceConfig()
    content = json.dumps(body)
    for config, header, there in (
        (on, None, True), (off, None, False), (on, "off", False), (off, "on", True), (on, "OFF", False),
    ):  # fmt: skip
        headers = JSON | ({} if header is None else {"X-Paceline-Extras": header})
        text = call(ScriptedEngine(), "POST", path, config=config, content=content, headers=headers).text
        assert ('"paceline"' in text) == there
        assert "drafted" not in text or there


def test_a_short_answer_is_short():
    engine = ScriptedEngine("word " * 200)
    ask = {"messages": HELLO, "max_tokens": 200}
    long = post(engine, "/v1/chat/completions", **ask)
    short = post(engine, "/v1/chat/completions", config=ServiceConfig(extras="off"), **ask)
    assert long.json()["choices"][0]["message"] == short.json()["choices"][0]["message"]
    assert len(short.content) < len(long.content) / 3


def test_openai_s_further_fields():
    body = complete(ScriptedEngine()).json()
    assert body["service_tier"] == "default"
    assert set(body["usage"]["completion_tokens_details"].values()) == {0}
    chunks = events(complete(ScriptedEngine(), stream=True))[:-1]
    assert {chunk["system_fingerprint"] for chunk in chunks} == {body["system_fingerprint"]}
    assert post(ScriptedEngine(), "/v1/completions", prompt="a").json()["system_fingerprint"].startswith("fp_")
    other = ScriptedEngine()
    other.max_model_len = 99
    assert complete(other).json()["system_fingerprint"] != body["system_fingerprint"]
    with live(ScriptedEngine()) as service, openai.OpenAI(base_url=f"{service.url}/v1/", api_key="x") as client:
        answer = client.chat.completions.create(model="scripted", messages=HELLO)
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0
    assert (answer.service_tier, answer.system_fingerprint) == ("default", body["system_fingerprint"])
