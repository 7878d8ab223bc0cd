"""The service's figures for Prometheus."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing, suppress

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from paceline import SamplingParams
from paceline.core.call import CallOptions
from paceline.core.errors import PacelineError
from paceline.server import create_app
from paceline.server.admission import Visit
from paceline.server.calls import Call
from tests.support.http_calls import HELLO, JSON, call
from tests.support.scripted_engine import ScriptedEngine


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
    assert not [family.name for family in families if family.name.endswith("_created")]
    for sample in (sample for family in families for sample in family.samples):
        if sample.name.startswith("process_"):
            continue
        assert sample.labels.pop("model_name") == "scripted"
        values[sample.name.removeprefix("paceline:"), *sorted(sample.labels.values())] = sample.value
    return values, {family.name: family.type for family in families}


EXPECTED = {
    "eager_steps": "counter",
    "num_requests_running": "gauge", "num_requests_waiting": "gauge", "kv_cache_usage_perc": "gauge",
    "prefix_cache_queries": "counter", "prefix_cache_hits": "counter", "num_preemptions": "counter",
    "ignored_fields": "counter", "prompt_tokens": "counter",
    "generation_tokens": "counter", "request_success": "counter",
    "time_to_first_token_seconds": "histogram", "inter_token_latency_seconds": "histogram",
    "e2e_request_latency_seconds": "histogram", "request_queue_time_seconds": "histogram",
    "request_prefill_time_seconds": "histogram", "request_decode_time_seconds": "histogram",
    "request_inference_time_seconds": "histogram", "spec_decode_num_drafts": "counter",
    "spec_decode_num_draft_tokens": "counter", "spec_decode_num_accepted_tokens": "counter",
    "spec_decode_num_accepted_tokens_per_pos": "counter", "request_time_per_output_token_seconds": "histogram",
    "request_prompt_tokens": "histogram", "request_generation_tokens": "histogram", "cache_config_info": "gauge",
    "iteration_tokens_total": "histogram", "http_requests": "counter",
}  # fmt: skip


def test_metrics_have_the_names_of_the_field():
    _, kinds = figures(ScriptedEngine())
    own = {name.removeprefix("paceline:"): kind for name, kind in kinds.items() if name.startswith("paceline:")}
    assert own == EXPECTED | {"engine_restarts": "counter"}
    assert {name for name in kinds if not name.startswith("paceline:")} >= {
        "process_cpu_seconds",
        "process_resident_memory_bytes",
        "process_open_fds",
    }


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
    assert values["eager_steps_total", "logprobs"] == 3
    assert values["spec_decode_num_accepted_tokens_per_pos_total", "0"] == 4
    assert values["spec_decode_num_accepted_tokens_per_pos_total", "1"] == 2
    # Half a second apart in the script, whatever chunks they came in.
    gaps = 2 * 7 + 2 * 3 + stopped - 1
    assert values["inter_token_latency_seconds_count",] == gaps
    assert values["inter_token_latency_seconds_sum",] == pytest.approx(0.5 * gaps)


def test_lengths_cache_and_steps():
    """Lengths by call and by answer; the rest is the engine's."""
    chat = {"messages": HELLO, "max_tokens": 8, "n": 3}
    values, _ = figures(
        ScriptedEngine(),
        ("/v1/chat/completions", chat),
        ("/v1/completions", {"prompt": [[5], [6, 7]], "max_tokens": 2}),
    )
    assert values["request_prompt_tokens_count",] == 3
    assert values["request_prompt_tokens_bucket", "2.0"] == 2
    assert (values["request_generation_tokens_count",], values["request_generation_tokens_sum",]) == (5, 28)
    assert values["request_generation_tokens_bucket", "2.0"] == 2
    assert values["request_generation_tokens_bucket", "10.0"] == 5
    assert values["request_time_per_output_token_seconds_count",] == 3
    assert [values["iteration_tokens_total_bucket", edge] for edge in ("1.0", "8.0", "+Inf")] == [5, 7, 8]
    assert (values["iteration_tokens_total_count",], values["iteration_tokens_total_sum",]) == (8, 60)
    assert values["cache_config_info", "10", "16", "float32"] == 1


def test_openmetrics_where_it_is_asked_for():
    for accept in (
        "application/openmetrics-text; version=1.0.0,text/plain;q=0.5",
        "application/openmetrics-text;version=x",
    ):
        response = call(ScriptedEngine(), "GET", "/metrics", headers={"accept": accept})
        assert response.headers["content-type"].startswith("application/openmetrics-text")
        names = {family.name for family in openmetrics_families(response.text)}
        assert {"paceline:http_requests", "paceline:iteration_tokens_total", "process_cpu_seconds"} <= names
        assert "_created" not in response.text
    for accept in ("", "*/*", "text/plain", "application/openmetrics-text;q=0, text/plain"):
        response = call(ScriptedEngine(), "GET", "/metrics", headers={"accept": accept})
        assert response.headers["content-type"].startswith("text/plain")
        assert "# EOF" not in response.text


def test_http_answers_are_counted_by_status_and_endpoint():
    """What an attacker names makes no label."""
    engine = ScriptedEngine()

    async def go():
        transport = httpx.ASGITransport(create_app(engine), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for path in ("/health", "/v1/models/scripted", "/v1/models/other", "/no/such/path", "/nor/this"):
                await client.get(path)
            await client.request("BREW", "/health")
            await client.head("/health/")
            await client.post("/chat", content="{", headers=JSON)
            return (await client.get("/metrics")).text

    found = {
        (sample.labels["method"], sample.labels["handler"], sample.labels["status"]): sample.value
        for family in text_string_to_metric_families(asyncio.run(go()))
        for sample in family.samples
        if sample.name == "paceline:http_requests_total"
    }
    assert found.pop(("other", "/health", "405"), None) or found.pop(("other", "none", "405"))
    assert found == {
        ("GET", "/health", "200"): 1,
        ("HEAD", "/health", "200"): 1,
        ("GET", "/v1/models/{name:path}", "200"): 1,
        ("GET", "/v1/models/{name:path}", "404"): 1,
        ("GET", "none", "404"): 2,
        ("POST", "/chat", "400"): 1,
    }


async def _left_early(engine, watch_until, body):
    """The figures after a client took so many updates of a call and left."""
    service = create_app(engine).state.service
    params, options = SamplingParams(**body), CallOptions()
    visit = Visit("a", service.admission)
    with suppress(PacelineError):
        async with aclosing(service.updates(Call("a", None, [[5, 6, 7]], params, options, visit))) as updates:
            seen = 0
            async for _ in updates:
                seen += 1
                if seen == watch_until:
                    break
    text, _ = service.metrics.text()
    return {
        (
            sample.name.removeprefix("paceline:"),
            *(v for k, v in sample.labels.items() if k != "model_name"),
        ): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_a_client_that_leaves_aborts_what_has_not_ended():
    """One of three answers had ended: two were aborted; the prompt and what came of it count."""
    engine = ScriptedEngine()
    honest = engine.delta

    def delta(index, detokenizer, token, *, params, count, over):
        return honest(index, detokenizer, token, params=params, count=count, over=over or (index == 1 and count == 2))

    engine.delta = delta
    values = asyncio.run(_left_early(engine, 2, {"n": 3, "max_tokens": 9}))
    assert values["request_success_total", "abort"] == 2
    assert values["request_success_total", "length"] == 1
    assert values["prompt_tokens_total",] == 3
    assert values["generation_tokens_total",] == values["request_generation_tokens_sum",] == 6
    assert values["request_prompt_tokens_count",] == 1
    assert values["request_generation_tokens_count",] == 3


def test_a_call_that_the_engine_refuses_is_no_abort():
    engine = ScriptedEngine()
    engine.max_model_len = 3
    values = asyncio.run(_left_early(engine, 9, {"max_tokens": 9}))
    assert not [key for key in values if key[0] == "request_success_total"]
    assert values["prompt_tokens_total",] == 0


def test_the_tokens_of_one_step_share_its_time():
    engine = ScriptedEngine()
    honest = engine.delta

    def delta(index, detokenizer, token, *, params, count, over):
        made = honest(index, detokenizer, token, params=params, count=count, over=over)
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
