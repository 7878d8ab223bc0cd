"""Who gets in: API keys on every route, one tenant per key, and nothing of a key anywhere."""

from __future__ import annotations

import asyncio
import json
import logging
import re

import httpx
import pytest

from paceline.cli.main import FAILED, run
from paceline.core.errors import ConfigError
from paceline.core.service_config import ServiceConfig
from paceline.server import create_app
from paceline.server.doors import PUBLIC_PATHS, KeyRing
from tests.support.http_calls import HELLO, assert_error
from tests.support.live_service import live
from tests.support.scripted_engine import ScriptedEngine

KEY, OTHER = "sk-local-0123456789", "sk-other-9876543210"
CONFIG = ServiceConfig(api_key=(KEY, OTHER))
BODY = {"model": "scripted", "messages": HELLO, "max_tokens": 2}


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def ask_all(engine, requests, *, config=CONFIG):
    """Answers of one application to requests: (method, path, options)."""

    async def go():
        transport = httpx.ASGITransport(create_app(engine, config=config), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [await client.request(method, path, **options) for method, path, options in requests]

    return asyncio.run(go())


def ask(engine, method, path, *, config=CONFIG, **options):
    return ask_all(engine, [(method, path, options)], config=config)[0]


def paths():
    """Every path of the app, with something in place of parameters."""
    found = {
        (method, re.sub(r"{[^}]*}", "scripted", route.path))
        for route in flat(create_app(ScriptedEngine(), config=CONFIG).routes)
        for method in getattr(route, "methods", None) or {"GET"}
    }
    assert found >= {("POST", "/v1/chat/completions"), ("GET", "/stats"), ("GET", "/health")}
    return sorted(found)


def flat(routes):
    """FastAPI keeps included routers as they are, or merges them, by version."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        yield from [route] if inner is None else flat(inner.routes)


NEAR_MISSES = [
    {}, bearer(""), bearer(KEY[:-1]), bearer(KEY + "x"), bearer(KEY.upper()), bearer(f"{KEY},{OTHER}"),
    bearer(f"{KEY} {OTHER}"), {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}, {"Authorization": "Bearer"},
    {"api-key": KEY}, {"X-Api-Key": KEY}, {"Cookie": f"key={KEY}"}, {"Authorization": f"Bearer{KEY}"},
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), paths())
def test_every_route_needs_a_key(method, path):
    engine = ScriptedEngine()
    requests = [(method, path, {"headers": headers, "params": {"api_key": KEY}}) for headers in NEAR_MISSES]
    for answer in ask_all(engine, requests):
        if path in PUBLIC_PATHS:
            assert answer.status_code == 200
            continue
        if method == "HEAD":
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            continue
        assert_error(answer, 401, code="invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert KEY[3:-1] not in answer.text
    assert engine.calls == []


@pytest.mark.parametrize(
    "path",
    [
        "/", "//", "//v1/models", "/v1/models/", "/v1//models", "/V1/models", "/nope", "/health/", "/docs",
        "//health", "/health%2f..%2fv1%2fmodels", "/health;/v1/models", "/ready/", "/static/../v1/models",
        "/health/../v1/models",
        "/v1/models?/health", "/%2e%2e/health", "/health%00", "/openapi.json", "/chat#/health", "/v1/models%23/health",
    ],
)  # fmt: skip
def test_no_spelling_of_a_path_gets_round_the_door(path):
    methods = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "BREW")
    answers = ask_all(ScriptedEngine(), [(method, path, {}) for method in methods])
    assert [answer.status_code for answer in answers] == [401] * len(methods)


def test_no_spelling_of_a_request_gets_round_the_door():
    requests = [
        b"GET http://localhost/v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Original-URL: /health\r\nX-Rewrite-URL: /health\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Host: a\r\n\r\n",
        b"POST /health HTTP/1.1\r\nHost: localhost\r\nX-HTTP-Method-Override: GET\r\nContent-Length: 0\r\n\r\n",
        f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        f"Authorization: Bearer {OTHER}\r\n\r\n".encode(),
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        b"GET /v1/models HTTP/1.0\r\nHost: localhost\r\n\r\n",
    ]
    with live(ScriptedEngine(), config=CONFIG) as service:
        for request in requests:
            reply = service.exchange(request)
            # 405: the only path without a key, by a method it does not have
            assert reply.status == (405 if b"/health HTTP" in request else 401), request
            assert reply.error
        service.good()


@pytest.mark.parametrize("key", [KEY, OTHER])
def test_each_key_opens_every_route(key):
    requests = [(method, path, {"headers": bearer(key), "json": BODY}) for method, path in paths()]
    assert not {answer.status_code for answer in ask_all(ScriptedEngine(), requests)} & {401, 403}


def test_keys_are_tenants():
    """At every endpoint; the digests of one service are compared, as every service has its own."""
    engine = ScriptedEngine()
    bodies = {
        "/v1/chat/completions": BODY, "/chat": {"message": "hi"}, "/v1/completions": {"prompt": "hi"},
        "/v1/embeddings": {"input": "hi"},
    }  # fmt: skip
    requests = [
        ("POST", path, {"headers": bearer(key), "json": body}) for path, body in bodies.items() for key in (KEY, OTHER)
    ]
    assert [answer.status_code for answer in ask_all(engine, requests)] == [200] * 8
    options = [options for _, _, options in engine.calls]
    assert all(option.client == option.cache_salt != "" for option in options)
    mine, others = ({option.cache_salt for option in options[first::2]} for first in (0, 1))
    assert len(mine) == len(others) == 1
    assert mine != others
    assert not any(key in repr(option) for key in (KEY, OTHER) for option in options)
    engine.calls.clear()
    assert ask(engine, "POST", "/chat", config=ServiceConfig(), json={"message": "hi"}).status_code == 200
    assert engine.calls[0][2].client == ""


def test_prefixes_are_shared_within_a_key_only(worker):
    """A prompt that another key has sent before is not found in the cache: its time would tell that it was sent."""
    body = {"model": worker.model_name.rpartition("/")[2], "messages": [{"role": "user", "content": "hello " * 40}]}
    with live(worker, config=CONFIG) as service, httpx.Client(base_url=service.url, trust_env=False) as client:

        def cached(key):
            answer = client.post("/v1/chat/completions", json=body | {"max_tokens": 4}, headers=bearer(key), timeout=30)
            return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

        assert cached(KEY) == 0
        assert cached(KEY) > 0
        assert cached(OTHER) == 0
        assert cached(OTHER) > 0
        service.good()


def test_keys_and_prompts_are_nowhere(caplog):
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.WARNING, "httpx")  # the client's own
    secret = "the-prompt-that-nobody-else-may-see"
    engine = ScriptedEngine()
    body = BODY | {"messages": [{"role": "user", "content": secret}]}
    answers = [
        ask(engine, "POST", f"/v1/chat/completions?key={KEY}", headers=bearer(KEY), json=body),
        ask(engine, "POST", "/v1/chat/completions", headers=bearer(KEY), json=body | {"temperature": -1}),
        ask(engine, "POST", "/v1/chat/completions", headers=bearer(KEY), json=body | {"stop": [secret, 3]}),
        ask(engine, "POST", "/v1/chat/completions", headers=bearer(KEY), content=secret),
        ask(engine, "POST", "/chat", headers=bearer(KEY[:-1]), json=body),
        ask(engine, "GET", "/stats", headers=bearer(KEY)),
        ask(ScriptedEngine(fault=RuntimeError(secret)), "POST", "/chat", headers=bearer(KEY), json={"message": secret}),
    ]
    assert [answer.status_code for answer in answers] == [200, 400, 400, 415, 401, 200, 500]
    shown = caplog.text + "".join(answer.text + str(answer.headers) for answer in answers)
    for hidden in (secret, KEY[3:-1], OTHER[3:]):
        assert hidden not in shown
    assert "unexpected RuntimeError" in caplog.text
    assert KEY not in repr(CONFIG) + repr(vars(KeyRing.of(CONFIG)))


def test_keys_from_a_file(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# people\n\n  {KEY}  \n{OTHER}\n")
    config = ServiceConfig(api_key=("third-key",), api_key_file=path)
    for key, status in ((KEY, 200), (OTHER, 200), ("third-key", 200), ("# people", 401), ("", 401)):
        assert ask(ScriptedEngine(), "GET", "/stats", config=config, headers=bearer(key)).status_code == status


@pytest.mark.parametrize("content", ["", "# only a comment\n\n", "kéy\n", "two words\n", "x" * 600, None, b"\xff\xfe"])
def test_a_key_file_without_keys_is_not_an_open_door(tmp_path, content):
    path = tmp_path / "keys"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match="--api-key-file") as caught:
        create_app(ScriptedEngine(), config=ServiceConfig(api_key_file=path))
    assert not content or str(content).strip() not in str(caught.value)


@pytest.mark.parametrize("key", ["", " ", "a b", "ключ", "x" * 513, "tab\t"])
def test_keys_that_no_header_can_carry(key):
    with pytest.raises(ConfigError, match="API key"):
        create_app(ScriptedEngine(), config=ServiceConfig(api_key=("fine", key)))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])  # noqa: S104
def test_beyond_this_machine_only_with_a_key_or_on_purpose(host):
    with pytest.raises(ConfigError, match=r"no API key\n.*--allow-unauthenticated"):
        ServiceConfig(host=host)
    assert ServiceConfig(host=host, api_key=(KEY,)).has_keys
    assert not ServiceConfig(host=host, allow_unauthenticated=True).has_keys
    assert run(["serve", "--host", host]) == FAILED
    for local in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert ServiceConfig(host=local).is_local


def test_the_openai_shape_of_a_refusal():
    error = ask(ScriptedEngine(), "GET", "/v1/models").json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_api_key", None)
    assert "Authorization: Bearer" in error["message"]
    assert json.loads(json.dumps(error)) == error
