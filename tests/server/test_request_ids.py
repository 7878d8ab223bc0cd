"""What every request leaves behind: an id in the answer, one line in the log, and nothing that it should not."""

from __future__ import annotations

import io
import json
import logging

import pytest

from paceline.core.errors import ConfigError
from paceline.core.service_config import ServiceConfig
from paceline.server import logs
from tests.support.http_calls import HELLO, JSON, call, complete
from tests.support.live_service import live, post
from tests.support.scripted_engine import ScriptedEngine

SAFE = ["a", "trace-1_2.3", "x" * 64, "00000000-0000-4000-8000-000000000000"]
UNSAFE = ["", "x" * 65, "a b", "a\tb", "a;b", "<script>", "ä", "../x", "a,b", '"', "%0a", "\x1b[31m", "a=b"]


def lines(caplog):
    return [json.loads(record.message) for record in caplog.records if record.name == "paceline.access"]


@pytest.mark.parametrize("given", SAFE)
def test_an_id_comes_back(given, caplog):
    caplog.set_level(logging.INFO, "paceline.access")
    for path in ("/health", "/stats", "/nope"):
        assert call(ScriptedEngine(), "GET", path, headers={"X-Request-Id": given}).headers["x-request-id"] == given
    assert [line["request_id"] for line in lines(caplog)] == [given] * 2  # probes have no lines


@pytest.mark.parametrize("given", UNSAFE)
def test_an_id_that_might_do_harm_is_replaced(given, caplog):
    caplog.set_level(logging.INFO, "paceline.access")
    answer = call(ScriptedEngine(), "GET", "/stats", headers={"X-Request-Id": given.encode()})
    made = answer.headers["x-request-id"]
    assert made != given
    assert len(made) == 32
    assert made.isalnum()
    assert lines(caplog)[0]["request_id"] == made


def test_every_answer_has_an_id():
    answers = [
        complete(ScriptedEngine()), complete(ScriptedEngine(), stream=True), complete(ScriptedEngine(), n=-1),
        complete(ScriptedEngine(fault=RuntimeError())), call(ScriptedEngine(), "PUT", "/chat"),
        call(ScriptedEngine(), "POST", "/chat", content=b"x" * 3_000_000, headers=JSON),
    ]  # fmt: skip
    assert [answer.status_code for answer in answers] == [200, 200, 400, 500, 405, 413]
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)


def test_one_line_per_request(caplog):
    caplog.set_level(logging.INFO, "paceline.access")
    engine = ScriptedEngine()
    complete(engine, max_tokens=3)
    complete(engine, max_tokens=5, stream=True)
    complete(engine, temperature=-1)
    call(engine, "GET", "/v1/models?token=secret")
    seen = lines(caplog)
    assert [(line["method"], line["path"], line["status"], line["output_tokens"]) for line in seen] == [
        ("POST", "/v1/chat/completions", 200, 3),
        ("POST", "/v1/chat/completions", 200, 5),
        ("POST", "/v1/chat/completions", 400, 0),
        ("GET", "/v1/models", 200, 0),
    ]
    assert seen[0]["prompt_tokens"] == len(engine.calls[0][0])
    assert all(line["seconds"] >= 0 for line in seen)
    assert "secret" not in caplog.text.replace("HTTP Request", "")
    assert HELLO[0]["content"] not in json.dumps(seen)


def test_the_line_of_an_unexpected_error_leads_to_its_request(caplog):
    answer = complete(ScriptedEngine(fault=RuntimeError("prompt text")))
    assert f"request {answer.headers['x-request-id']}: unexpected RuntimeError" in caplog.text
    streamed = complete(ScriptedEngine(fault=RuntimeError("prompt text"), fault_after=2), stream=True)
    assert f"request {streamed.headers['x-request-id']}: unexpected RuntimeError" in caplog.text
    assert "prompt text" not in caplog.text


@pytest.fixture
def log():
    """What the service writes, as it stands in its log."""
    logger, stream = logging.getLogger("paceline"), io.StringIO()
    before = logger.level
    logs.configure(logging.INFO)
    handler = logger.handlers[0]
    kept = handler.stream
    handler.stream = stream  # not setStream, which flushes the one before: another test may have closed it
    yield stream
    handler.stream = kept
    logger.removeHandler(handler)
    logger.setLevel(before)
    logging.getLogger("uvicorn").setLevel(logging.NOTSET)


INJECTIONS = [
    "/a%0a2026-01-01T00:00:00Z%20INFO%20paceline.access%20{}", "/a%0d%0aX", "/%1b[2J%1b[31mred", "/%e2%80%a8line",
    "/%00", "/%22}%0a{%22status%22:%20200", "/%c2%85next", "/" + "x" * 5000,
]  # fmt: skip


def test_nothing_that_is_sent_looks_like_a_line_of_its_own(log):
    with live(ScriptedEngine()) as service:
        for path in INJECTIONS:
            head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: a%0ab\r\nUser-Agent: x%0ay\r\n\r\n"
            assert service.exchange(head.encode()).status == 404
        assert service.exchange(post(b"{}", path="/v1/completions?prompt=secret")).status == 400
        assert service.exchange(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        )
        assert service.exchange(b"no request\r\n\r\n").status == 400
    written = log.getvalue()
    assert written.isascii()
    assert "\x1b" not in written
    assert "secret" not in written
    assert len(written.splitlines()) == len(INJECTIONS) + 2
    for line in written.splitlines():
        moment, level, name, text = line.split(" ", 3)
        assert (level, name) == ("INFO", "paceline.access")
        assert moment.endswith("Z")
        assert len(json.loads(text)["path"]) <= 200


def test_levels():
    assert ServiceConfig(log_level="warning").log_level == "warning"
    with pytest.raises(ConfigError, match="log_level"):
        ServiceConfig(log_level="loud")
