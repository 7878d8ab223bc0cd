"""More calls than there is room for: refused at once and told when to come back, while those admitted go on."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from paceline.core.service_config import Limits, ServiceConfig
from paceline.server import create_app
from paceline.server.admission import LONGEST_RETRY, Limiter
from paceline.server.errors import ApiError
from tests.support.http_calls import HELLO, JSON, assert_error, call
from tests.support.live_service import eventually, live, post, read_reply
from tests.support.scripted_engine import ScriptedEngine

BODY = {"model": "scripted", "messages": HELLO}


def together(engine, requests, *, limits, config=None):
    """Answers to requests (headers, fields) sent at once, and the service's admission afterwards."""

    async def go():
        app = create_app(engine, limits=limits, config=config)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=30) as client:
            calls = [client.post("/v1/chat/completions", json=BODY | more, headers=head) for head, more in requests]
            return await asyncio.gather(*calls), app.state.service.admission

    return asyncio.run(go())


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_server_refuses_at_once(stream):
    engine = ScriptedEngine(pause=0.01)
    answers, admission = together(engine, [({}, {"stream": stream})] * 30, limits=Limits(max_requests=4))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(answers) - len(refused) == len(engine.calls) == 4
    for answer in refused:
        assert assert_error(answer, 429, code="overloaded")["type"] == "rate_limit_error"
        assert 1 <= int(answer.headers["retry-after"]) <= LONGEST_RETRY
        cause, fix = answer.json()["error"]["message"].split("\n")
        assert cause.startswith("the server is full: at most 4 answers may be in progress (max_requests), this call")
        assert "Retry-After" in fix
    assert admission.num_active == 0


def test_places_come_back_whatever_becomes_of_a_call():
    for fault, fields in (("error", {}), (RuntimeError(), {}), ("abort", {"stream": True}), (None, {"n": 10**6})):
        requests = [({}, fields)] * 3
        _, admission = together(ScriptedEngine(fault=fault, fault_after=1), requests, limits=Limits(max_requests=3))
        assert admission.num_active == 0
        assert not admission._per_client  # nor does a counter stay of every client that ever came


@pytest.mark.parametrize(
    ("path", "fields", "param", "fix"),
    [
        ("/v1/chat/completions", {"messages": HELLO, "n": 4}, "n", "Set n and best_of to at most 3."),
        ("/v1/completions", {"prompt": ["a", "b"], "n": 2}, "n", "Set n and best_of to at most 1."),
        ("/v1/completions", {"prompt": "a", "n": 1, "best_of": 4}, "n", "Set n and best_of to at most 3."),
        ("/v1/completions", {"prompt": ["a", "b", "c", "d"], "n": 1}, "prompt", "Send at most 3 prompts."),
    ],
)
def test_a_call_that_asks_for_more_answers_than_one_may(path, fields, param, fix):
    engine = ScriptedEngine()
    body = {"content": json.dumps(fields), "headers": JSON}
    error = assert_error(call(engine, "POST", path, limits=Limits(max_answers_per_call=3), **body), 400, param=param)
    assert error["message"].endswith(fix)
    assert not engine.calls
    assert call(engine, "POST", path, limits=Limits(max_answers_per_call=4), **body).status_code == 200
    assert call(engine, "POST", path, **body).status_code == 200


def test_the_bound_is_not_for_embeddings():
    body = {"content": json.dumps({"input": ["a", "b", "c"]}), "headers": JSON}
    limits = Limits(max_answers_per_call=1)
    assert call(ScriptedEngine(), "POST", "/v1/embeddings", limits=limits, **body).status_code == 200


def test_every_answer_of_a_call_takes_a_place():
    limits = Limits(max_requests=4)
    answers, _ = together(ScriptedEngine(pause=0.01), [({}, {"n": 3}), ({}, {"n": 3}), ({}, {})], limits=limits)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429]
    # More than there are: alone, for it would never be served otherwise.
    assert together(ScriptedEngine(), [({}, {"n": 9})], limits=limits)[0][0].status_code == 200


def test_bodies_on_their_way_take_no_place():
    """Else a few clients that send nothing could keep everybody out."""
    with live(ScriptedEngine(), limits=Limits(max_requests=1)) as service:
        for _ in range(5):
            service.connect(post(b"{", length=100))
        service.good()


def test_the_time_to_come_back_follows_the_queue():
    admission = Limiter(Limits(max_requests=2))

    def refused():
        with pytest.raises(ApiError) as caught:
            admission.enter("")
        return int(caught.value.headers["Retry-After"])

    for _ in range(40):  # calls that take eight seconds each
        admission.enter("")
        admission.leave("", 1, 8.0)
    admission.enter("")
    admission.enter("")
    # Two at a time, eight seconds each: a place every four seconds, for one after the other of those who wait.
    assert [refused() for _ in range(3)] == [4, 8, 12]
    admission.leave("", 1, 8.0)
    admission.enter("")
    assert refused() == 4
    assert max(refused() for _ in range(100)) == LONGEST_RETRY


def test_a_key_has_its_share():
    config = ServiceConfig(api_key=("first-key", "second-key"))
    first, second = ({"Authorization": f"Bearer {key}"} for key in config.api_key)
    requests = [(first, {})] * 5 + [(second, {})] * 2
    limits = Limits(max_requests=10, max_requests_per_key=2)
    answers, admission = together(ScriptedEngine(pause=0.01), requests, limits=limits, config=config)
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429, 429, 200, 200]
    assert_error(answers[2], 429, code="rate_limit_exceeded")
    assert "at most 2 answers may be in progress (max_requests_per_key)" in answers[2].text
    assert "retry-after" in answers[2].headers
    assert admission.num_active == 0


def test_who_asks_for_many_answers_is_told_so():
    requests = [({}, {}), ({}, {"n": 3})]
    answers, _ = together(ScriptedEngine(pause=0.05), requests, limits=Limits(max_requests=3))
    assert answers[1].status_code == 429
    assert "(max_requests), this call asks for 3, n for each prompt" in answers[1].json()["error"]["message"]


def test_without_keys_there_are_no_shares():
    answers, _ = together(ScriptedEngine(pause=0.01), [({}, {})] * 4, limits=Limits(max_requests_per_key=1))
    assert [answer.status_code for answer in answers] == [200] * 4


def test_who_is_admitted_waits_no_longer_than_the_queue_is(worker):
    """Of a crowd, as many as there are places are served in full; a newcomer is served right after."""
    fields = {"max_tokens": 20, "ignore_eos": True, "model": worker.model_name.rpartition("/")[2]}
    answers, admission = together(worker, [({}, fields)] * 40, limits=Limits(max_requests=6))
    served = [answer.json() for answer in answers if answer.status_code == 200]
    assert len(served) == 6
    assert all(answer["usage"]["completion_tokens"] == 20 for answer in served)
    assert admission.num_active == 0
    pages = worker.stats()["pages"]
    assert (pages["referenced"], pages["free"] + pages["cached"]) == (0, pages["total"])


def test_a_dead_engine_says_when_to_come_back():
    engine = ScriptedEngine()
    engine.alive = False
    answers, _ = together(engine, [({}, {})], limits=Limits())
    assert_error(answers[0], 503, code="engine_dead")
    assert int(answers[0].headers["retry-after"]) > 0


def test_a_flood_on_sockets_leaves_the_server_as_it_was():
    engine = ScriptedEngine(pause=0.02)
    with live(engine, limits=Limits(max_requests=3)) as service:
        crowd = [service.connect(post(json.dumps(BODY).encode())) for _ in range(60)]
        statuses = sorted(read_reply(connection).status for connection in crowd)
        assert statuses == [200] * 3 + [429] * 57
        eventually(lambda: not engine.running)
        service.good()
