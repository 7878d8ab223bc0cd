"""Probes, version, models and figures."""

from __future__ import annotations

import asyncio
import threading

import httpx

import paceline
from paceline.core.errors import EngineStalledError
from paceline.server import create_app
from tests.support.http_calls import assert_error, call
from tests.support.scripted_engine import ScriptedEngine


def test_version():
    assert call(ScriptedEngine(), "GET", "/version").json() == {"version": paceline.__version__}


def test_ready_and_health_tell_loading_stalled_and_dead_apart():
    engine = ScriptedEngine()
    assert call(engine, "GET", "/ready").json() == {"status": "ready", "model": "scripted"}
    engine.loaded = False
    assert call(engine, "GET", "/health").status_code == 200
    assert_error(call(engine, "GET", "/ready"), 503, code="not_ready")
    engine.loaded, engine.stalled = True, True
    assert_error(call(engine, "GET", "/ready"), 503, code="not_ready")
    assert_error(call(engine, "GET", "/health"), 503, code="engine_stalled")
    engine.stalled, engine.alive = False, False
    assert_error(call(engine, "GET", "/ready"), 503, code="not_ready")
    assert_error(call(engine, "GET", "/health"), 503, code="engine_dead")


def test_a_draining_server_is_healthy_but_not_ready():
    async def go():
        app = create_app(ScriptedEngine())
        app.state.service.admission.draining = True
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get("/ready"), await client.get("/health")

    ready, health = asyncio.run(go())
    assert_error(ready, 503, code="draining")
    assert health.status_code == 200


def test_who_asks_for_figures_of_a_stuck_engine_leaves_the_threads_to_calls():
    """However many ask, and also where they have left."""
    engine, asked, goes_on = ScriptedEngine(), [], threading.Event()
    told = engine.stats()

    def stuck():
        asked.append(1)
        assert goes_on.wait(30)
        return told

    engine.stats = stuck

    async def go():
        transport = httpx.ASGITransport(create_app(engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30) as client:
            paths = ["/stats", "/metrics"] * 40
            waiting = [asyncio.ensure_future(client.get(path)) for path in paths]
            while len(asked) < 2:
                await asyncio.sleep(0.001)
            for task in waiting[:20]:
                task.cancel()
            called = await client.post("/chat", json={"message": "hello"})
            goes_on.set()
            return called, await asyncio.gather(*waiting[20:])

    try:
        called, figures = asyncio.run(go())
    finally:
        goes_on.set()
    assert called.status_code == 200
    assert {answer.status_code for answer in figures} == {200}
    assert len(asked) == 2


def test_figures_of_a_stalled_engine_say_that_it_is_stalled():
    class Stalled(ScriptedEngine):
        def stats(self):
            raise EngineStalledError("stuck")

    answer = call(Stalled(), "GET", "/stats")
    assert_error(answer, 503, code="engine_stalled")
    assert int(answer.headers["retry-after"]) > 0
    metrics = call(Stalled(), "GET", "/metrics")
    assert metrics.status_code == 200
    assert "engine_restarts" in metrics.text
    assert "num_requests_running" not in metrics.text


def test_calls_do_not_queue_behind_a_step_that_does_not_end():
    engine = ScriptedEngine()
    engine.stalled = True
    error = call(engine, "POST", "/chat", json={"message": "hello"})
    assert_error(error, 503, code="engine_stalled")
    assert int(error.headers["retry-after"]) > 0
    assert not engine.calls
