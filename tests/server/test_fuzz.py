"""Bodies that Schemathesis makes from the service's own description: inside it, and just outside."""

from __future__ import annotations

from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks

from paceline import LLM
from paceline.core.service_config import Limits
from paceline.engine.worker import EngineWorker
from paceline.server import tokens
from tests.support.http_calls import call
from tests.support.live_service import live
from tests.support.scripted_engine import ScriptedEngine

CONTEXT = 48
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]
CONTRADICT = {"min_tokens", "max_completion_tokens", "best_of", "stream_options", "top_logprobs", "allowed_token_ids"}
TOKENS = {"prompt", "input", "tokens", "stop_token_ids"}
OPERATIONS = sorted(
    (path, method)
    for path, methods in call(ScriptedEngine(), "GET", "/openapi.json").json()["paths"].items()
    for method in methods
)


@pytest.fixture(scope="module")
def service(tiny):
    """A real engine with a context so short that no generated body asks for much."""
    target, draft = tiny
    speculative = {"method": "draft_model", "model": str(draft)}
    llm = LLM(str(target), speculative_config=speculative, max_model_len=CONTEXT, num_blocks=64, max_num_seqs=8)
    worker = EngineWorker(llm)
    try:
        with live(worker, limits=Limits(max_requests=4096)) as service:
            yield service
    finally:
        worker.close()


@pytest.fixture(scope="module")
def described(service):
    return schemathesis.openapi.from_url(f"{service.url}/openapi.json")


def examples(cases, number, check):
    """Runs ``check`` on the same cases every time; a failure is shown as it came, without minutes of shrinking."""
    bounds = settings(
        max_examples=number, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=HealthCheck
    )
    seed(20)(bounds(given(cases)(check)))()


# What has no body cannot be asked wrongly.
KINDS = [
    (*operation, mode) for operation in OPERATIONS for mode in GenerationMode if mode.is_positive or "post" in operation
]


@pytest.mark.parametrize(("path", "method", "mode"), KINDS)
def test_answers_are_as_described(service, described, path, method, mode):
    seen: Counter[int] = Counter()

    def check(case):
        response = case.call(timeout=60)
        seen[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    examples(described[path][method].as_strategy(generation_mode=mode), 30 if method == "post" else 4, check)
    assert seen
    service.idle()


def sensible(path, body, vocabulary):
    """The body without what descriptions of single fields cannot rule out: ids beyond the vocabulary, fields that
    contradict each other, texts without a token, and 1.0 for 1, which JSON schema takes for an integer."""
    body = {name: integral(value) for name, value in body.items() if value is not None and name not in CONTRADICT}
    for name in TOKENS & body.keys():
        body[name] = within(body[name], vocabulary)
    if "logit_bias" in body:
        body["logit_bias"] = {str(int(token) % vocabulary): bias for token, bias in body["logit_bias"].items()}
    if path in ("/chat", "/tokenize"):
        body.pop("messages", None)
        body[{"/chat": "message", "/tokenize": "prompt"}[path]] = "one two"
    if path in ("/v1/completions", "/v1/embeddings"):
        name = "prompt" if path == "/v1/completions" else "input"
        if not (isinstance(body[name], list) and all(isinstance(one, int | list) for one in body[name])):
            body[name] = ["one two", "three"]
    if "max_tokens" in body:
        body["max_tokens"] = 1 + body["max_tokens"] % 8
    if isinstance(body.get("n"), int):
        body["n"] = 1 + body["n"] % 4
    return body


def integral(value):
    if isinstance(value, list):
        return [integral(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def within(value, vocabulary):
    """Integers, wherever they are, as ids of the vocabulary; few enough for the context."""
    if isinstance(value, list):
        return [within(one, vocabulary) for one in value][: CONTEXT // 2]
    return value % vocabulary if isinstance(value, int) else value


@pytest.mark.parametrize("path", [path for path, method in OPERATIONS if method == "post"])
def test_what_makes_sense_is_served(service, described, path):
    served = []

    def check(case):
        case.body = sensible(path, case.body, service.engine.vocab_size)
        response = case.call(timeout=60)
        case.validate_response(response, checks=CHECKS)
        served.append(response.status_code == 200)
        assert served[-1] or response.json()["error"]["code"] == "context_length_exceeded", response.text

    examples(described[path]["post"].as_strategy(generation_mode=GenerationMode.POSITIVE), 24, check)
    assert sum(served) > len(served) / 2
    service.idle()


def test_an_answer_that_is_not_as_described_is_seen(service, described, monkeypatch):
    whole = tokens._tokenized
    monkeypatch.setattr(tokens, "_tokenized", lambda *given: whole(*given) | {"count": None})
    with pytest.raises(FailureGroup):
        test_what_makes_sense_is_served(service, described, "/tokenize")
