"""Calls the application in process, without a socket."""

from __future__ import annotations

import asyncio
import json

import httpx

from paceline.server import Limits, ServiceConfig, create_app

HELLO = [{"role": "user", "content": "hello"}]
JSON = {"Content-Type": "application/json"}


def call(engine, method, path, *, limits: Limits | None = None, config: ServiceConfig | None = None, **options):
    """One request to a fresh application; errors come back as responses."""

    async def go():
        transport = httpx.ASGITransport(create_app(engine, limits=limits, config=config), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=30) as client:
            return await client.request(method, path, **options)

    return asyncio.run(go())


def complete(engine, **body):
    body = {"model": "scripted", "messages": HELLO} | body
    return call(engine, "POST", "/v1/chat/completions", content=json.dumps(body), headers=JSON)


def post(engine, path, *, config: ServiceConfig | None = None, **body):
    return call(engine, "POST", path, config=config, content=json.dumps({"model": "scripted"} | body), headers=JSON)


def chat(engine, **body):
    return call(engine, "POST", "/chat", content=json.dumps(body), headers=JSON)


def events(response):
    """The JSON objects of an event stream; "[DONE]" as it is."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def assert_error(response, status, *, param=None, code=None):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "Traceback" not in response.text
    assert "/work" not in response.text
    if param is not None:
        assert error["param"] == param, error
    if code is not None:
        assert error["code"] == code, error
    return error
