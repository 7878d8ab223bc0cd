"""Which Host names and web origins are let in."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from paceline.core.service_config import ServiceConfig
from paceline.server import create_app
from tests.support.http_calls import HELLO, assert_error
from tests.support.live_service import live
from tests.support.scripted_engine import ScriptedEngine

KEY = "sk-0123456789"
ORIGIN = "https://app.example.org"
BODY = {"model": "scripted", "messages": HELLO, "max_tokens": 1}


def ask(config, method, path, headers):
    async def go():
        transport = httpx.ASGITransport(create_app(ScriptedEngine(), config=config))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, headers=headers, json=BODY if method == "POST" else None)

    return asyncio.run(go())


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "127.0.0.1:1",
        "[::1]:8000",
        "127.0.0.1",
        "localhost:",
        "localhost.",
        "LocalHost.:8000",
    ],
)
def test_this_machines_names(host):
    assert ask(ServiceConfig(), "GET", "/health", {"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "attacker.example", "localhost.attacker.example", "attacker.example:8000", "127.0.0.1.nip.io", "localhost@x",
        "x@localhost", "", " ", "127.0.0.2", "2130706433", "localhost:8000:1", "localhost/x", "[::1", "::1",
        "localhost..", ".", "localhost.:1:2", "attacker.example.", "localhost, attacker.example", "localhost:x",
    ],
)  # fmt: skip
def test_other_names_are_a_page_that_was_rebound(host):
    for path in ("/health", "/v1/models", "/"):
        assert_error(ask(ServiceConfig(), "GET", path, {"Host": host}), 403, code="host_not_allowed")


def test_more_names_may_be_allowed():
    config = ServiceConfig(allowed_hosts=("LLM.example.org",))
    for host, status in (("llm.example.org:443", 200), ("localhost", 200), ("example.org", 403)):
        assert ask(config, "GET", "/health", {"Host": host}).status_code == status


def test_beyond_this_machine_any_name_or_those_that_are_given():
    wide = {"host": "192.0.2.1", "api_key": (KEY,)}
    assert ask(ServiceConfig(**wide), "GET", "/health", {"Host": "anything"}).status_code == 200
    narrow = ServiceConfig(**wide, allowed_hosts=("llm.example.org",))
    assert ask(narrow, "GET", "/health", {"Host": "llm.example.org"}).status_code == 200
    assert ask(narrow, "GET", "/health", {"Host": "localhost"}).status_code == 403


def test_on_a_socket():
    with live(ScriptedEngine(), config=ServiceConfig()) as service:
        for line, status in ((b"Host: attacker.example", 403), (b"Host: localhost", 200), (b"hOsT:localhost:9", 200)):
            assert service.exchange(b"GET /health HTTP/1.1\r\n" + line + b"\r\n\r\n").status == status
        assert service.exchange(b"GET /health HTTP/1.0\r\n\r\n").status == 403


PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


def cors_of(response):
    return {name: value for name, value in response.headers.items() if name.startswith("access-control")}


@pytest.mark.parametrize("origin", [ORIGIN, "null", "http://localhost:3000"])
def test_no_page_gets_in_unless_it_is_named(origin):
    for method in ("GET", "POST", "OPTIONS"):
        answer = ask(ServiceConfig(), method, "/v1/chat/completions", {"Origin": origin} | PREFLIGHT)
        assert cors_of(answer) == {}
        assert answer.status_code != 200 or method == "POST"


@pytest.mark.parametrize("keys", [(), (KEY,)])
def test_a_page_that_is_named(keys):
    config = ServiceConfig(allowed_origins=(ORIGIN,), api_key=keys)
    asked = ask(config, "OPTIONS", "/v1/chat/completions", {"Origin": ORIGIN} | PREFLIGHT)
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in asked.headers["access-control-allow-headers"]
    sent = ask(config, "POST", "/v1/chat/completions", {"Origin": ORIGIN, "Authorization": f"Bearer {KEY}"})
    assert (sent.status_code, sent.headers["access-control-allow-origin"]) == (200, ORIGIN)
    assert "x-request-id" in sent.headers["access-control-expose-headers"].lower()
    # What a page may read of a refusal is as much as of an answer.
    assert ask(config, "GET", "/nope", {"Origin": ORIGIN}).headers["access-control-allow-origin"] == ORIGIN
    for other in ("https://evil.example", f"{ORIGIN}.evil.example", ORIGIN.upper(), "null", ORIGIN + ":444", "*"):
        for headers in ({"Origin": other}, {"Origin": other} | PREFLIGHT):
            answer = ask(config, "OPTIONS", "/v1/chat/completions", headers)
            assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origins", [("*",), (ORIGIN,), ("*", ORIGIN)])
def test_never_with_credentials(origins):
    config = ServiceConfig(allowed_origins=origins, api_key=(KEY,))
    for method in ("OPTIONS", "GET", "POST"):
        headers = {"Origin": ORIGIN, "Cookie": "a=b", "Authorization": f"Bearer {KEY}"} | PREFLIGHT
        answer = ask(config, method, "/v1/chat/completions", headers)
        assert answer.headers["access-control-allow-origin"] in ("*", ORIGIN)
        assert "access-control-allow-credentials" not in answer.headers
