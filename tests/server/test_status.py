"""Probes, version, models and figures."""

from __future__ import annotations

import asyncio
import json
import threading

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import paceline
from paceline.core.errors import EngineStalledError
from paceline.server import create_app
from tests.server.calling import HELLO, JSON, assert_error, call
from tests.server.scripted_engine import ScriptedEngine


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


def figures(engine, *bodies, dead=False):
    """Name and labels -> value, after these calls were made of one application; and the families' types."""

    async def go():
        transport = httpx.ASGITransport(create_app(engine), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for path, body in bodies:
                content = json.dumps({"model": "scripted"} | body)
                assert (await client.post(path, content=content, headers=JSON)).status_code == 200
            engine.alive = not dead
            return await client.get("/metrics")

    response = asyncio.run(go())
    assert response.headers["content-type"].startswith("text/plain")
    families = list(text_string_to_metric_families(response.text))
    values = {}
    for sample in (sample for family in families for sample in family.samples):
        assert sample.labels.pop("model_name") == "scripted"
        values[sample.name.removeprefix("paceline:"), *sorted(sample.labels.values())] = sample.value
    return values, {family.name: family.type for family in families if not family.name.endswith("_created")}


EXPECTED = {
    "num_requests_running": "gauge", "num_requests_waiting": "gauge", "kv_cache_usage_perc": "gauge",
    "prefix_cache_queries": "counter", "prefix_cache_hits": "counter", "num_preemptions": "counter",
    "ignored_fields": "counter", "prompt_tokens": "counter",
    "generation_tokens": "counter", "request_success": "counter",
    "time_to_first_token_seconds": "histogram", "inter_token_latency_seconds": "histogram",
    "e2e_request_latency_seconds": "histogram", "request_queue_time_seconds": "histogram",
    "request_prefill_time_seconds": "histogram", "request_decode_time_seconds": "histogram",
    "request_inference_time_seconds": "histogram", "spec_decode_num_drafts": "counter",
    "spec_decode_num_draft_tokens": "counter", "spec_decode_num_accepted_tokens": "counter",
    "spec_decode_num_accepted_tokens_per_pos": "counter",
}  # fmt: skip


def test_metrics_have_the_names_of_the_field():
    _, kinds = figures(ScriptedEngine())
    assert {name.removeprefix("paceline:"): kind for name, kind in kinds.items()} == EXPECTED | {
        "engine_restarts": "counter"
    }
    assert all(name.startswith("paceline:") for name in kinds)


def test_metrics_count_what_callers_got():
    engine = ScriptedEngine()
    chat = {"messages": HELLO, "max_tokens": 8, "n": 2}
    values, _ = figures(
        engine,
        ("/v1/chat/completions", chat),
        ("/v1/completions", {"prompt": [[5], [6, 7]], "max_tokens": 4, "stream": True}),
        ("/v1/embeddings", {"input": [5, 6, 7]}),
        ("/chat", {"message": "x", "stop": "Hell"}),
    )
    prompts = sum(len(prompt) for prompt, _, _ in engine.calls)
    stopped = len(engine.tokenizer.encode("Hell", add_special_tokens=False))
    assert values["prompt_tokens_total",] == prompts
    assert values["generation_tokens_total",] == 16 + 8 + stopped
    assert (values["request_success_total", "length"], values["request_success_total", "stop"]) == (4, 2)
    assert values["time_to_first_token_seconds_count",] == 4
    assert (values["kv_cache_usage_perc",], values["prefix_cache_hits_total",]) == (0.3, 12)
    assert values["spec_decode_num_accepted_tokens_per_pos_total", "0"] == 4
    assert values["spec_decode_num_accepted_tokens_per_pos_total", "1"] == 2
    # Half a second apart in the script, whatever chunks they came in.
    gaps = 2 * 7 + 2 * 3 + stopped - 1
    assert values["inter_token_latency_seconds_count",] == gaps
    assert values["inter_token_latency_seconds_sum",] == pytest.approx(0.5 * gaps)


def test_the_tokens_of_one_step_share_its_time():
    engine = ScriptedEngine()
    honest = engine.delta

    def delta(index, watcher, token, *, params, count, over):
        made = honest(index, watcher, token, params=params, count=count, over=over)
        made.token_times[:] = [1.0 if count == 1 else 1.6]
        return made

    engine.delta = delta
    values, _ = figures(engine, ("/v1/completions", {"prompt": "x", "max_tokens": 4}))
    assert values["inter_token_latency_seconds_count",] == 3
    assert values["inter_token_latency_seconds_sum",] == pytest.approx(0.6)


def test_figures_of_a_dead_engine_are_missing_and_the_service_s_stay():
    values, _ = figures(ScriptedEngine(), ("/chat", {"message": "x"}), dead=True)
    assert values["request_success_total", "length"] == 1
    assert ("num_requests_running",) not in values
    assert values["engine_restarts_total",] == 0


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
