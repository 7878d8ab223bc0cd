"""The service's description of itself: complete, without dangling references, and true."""

from __future__ import annotations

import json
import math
from functools import cache

import pytest
from pydantic import BaseModel, ValidationError

from paceline.core.errors import InvalidRequestError
from paceline.server import create_app, schemas
from paceline.server.schemas import answers
from paceline.server.schemas.generation import NO_LIMIT
from tests.support.http_calls import HELLO, call, post
from tests.support.scripted_engine import ScriptedEngine

EXAMPLES = {
    "/v1/chat/completions": ({"messages": HELLO, "logprobs": True, "top_logprobs": 1}, answers.ChatCompletion),
    "/v1/completions": ({"prompt": ["a", "b"], "echo": True, "logprobs": 1, "max_tokens": 3}, answers.Completion),
    "/v1/embeddings": ({"input": "a"}, answers.Embeddings),
    "/chat": ({"message": "a"}, answers.ChatAnswer),
    "/tokenize": ({"prompt": "a", "return_token_strs": True}, answers.Tokenized),
    "/detokenize": ({"tokens": [5]}, answers.Detokenized),
}
KINDS = {
    "/v1/chat/completions": schemas.ChatCompletionRequest, "/v1/completions": schemas.CompletionRequest,
    "/v1/embeddings": schemas.EmbeddingRequest, "/chat": schemas.ChatRequest,
}  # fmt: skip
STATUS = {
    "/health": answers.Status, "/ready": answers.Status, "/version": answers.Version, "/v1/models": answers.Models,
    "/v1/models/scripted": answers.Model,
}  # fmt: skip


@cache
def document():
    return call(ScriptedEngine(), "GET", "/openapi.json").json()


def operations():
    return [(path, method, body) for path, ways in document()["paths"].items() for method, body in ways.items()]


def test_every_route_is_described():
    app = create_app(ScriptedEngine())
    served = set(app.openapi()["paths"])
    assert served >= set(EXAMPLES) | {"/health", "/ready", "/metrics", "/stats", "/v1/models/{name}"}
    assert {path for path, method, _ in operations() if method == "post"} == set(EXAMPLES)
    assert document()["openapi"].startswith("3.1")
    for path in ("/docs", "/redoc", "/docs/oauth2-redirect"):
        assert call(ScriptedEngine(), "GET", path).status_code == 404


def test_nothing_points_nowhere_or_outside():
    text = json.dumps(document())
    assert "http://" not in text
    assert "https://" not in text
    names = {part.partition('"')[0] for part in text.split('"$ref": "#/components/schemas/')[1:]}
    schemas = document()["components"]["schemas"]
    assert names <= set(schemas)
    assert '"$defs"' not in text
    assert not {"HTTPValidationError", "ValidationError"} & set(schemas)


def test_every_failure_has_the_error_s_form():
    for path, method, body in operations():
        wanted = {"401", "500"} | ({"400", "404", "413", "415", "429", "503"} if method == "post" else set())
        assert wanted <= set(body["responses"]), path
        for status, response in body["responses"].items():
            if status != "200":
                schema = response["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Error"}
        if method == "post":
            assert body["requestBody"]["required"] is True


@pytest.mark.parametrize("path", EXAMPLES)
def test_answers_are_as_described(path):
    fields, kind = EXAMPLES[path]
    response = post(ScriptedEngine(), path, **fields)
    assert response.status_code == 200
    kind.model_validate_json(response.text, strict=True)
    described = document()["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert described == {"$ref": f"#/components/schemas/{kind.__name__}"}
    error = post(ScriptedEngine(), path, **fields | {"model": 3})
    assert error.status_code == 400
    answers.Error.model_validate_json(error.text, strict=True)


@pytest.mark.parametrize("path", STATUS)
def test_statuses_are_as_described(path):
    kind: type[BaseModel] = STATUS[path]
    kind.model_validate_json(call(ScriptedEngine(), "GET", path).text, strict=True)


NEEDS = {
    "top_logprobs": {"logprobs": True}, "best_of": {"n": 1}, "stream_options": {"stream": True}, "echo": {},
    "min_tokens": {"max_tokens": 2**31 - 1},
}  # fmt: skip


def bounded():
    """(path, field, schema) of every field that is a number within bounds."""
    for path in KINDS:
        name = document()["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        for field, schema in document()["components"]["schemas"][name.rpartition("/")[2]]["properties"].items():
            for one in schema.get("anyOf", [schema]):
                if one.get("type") in ("integer", "number"):
                    yield path, field, one


def is_taken(path, field, value):
    """As an endpoint reads a body, without the endpoint."""
    fields, _ = EXAMPLES[path]
    body = {name: value for name, value in fields.items() if name not in ("logprobs", "top_logprobs", "max_tokens")}
    try:
        needs = NEEDS.get(field, {}) if field in KINDS[path].model_fields else {}
        KINDS[path].model_validate({"model": "x"} | body | needs | {field: value}).params(10)
    except (ValidationError, InvalidRequestError):
        return False
    return True


def test_numbers_are_checked_as_described():
    """At both ends of its range a number is taken, and past them refused."""
    seen = set()
    for path, field, schema in bounded():
        step = 1 if schema["type"] == "integer" else 0.001
        low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema["maximum"]
        inside = [high, low if "minimum" in schema else low + step]
        assert all(is_taken(path, field, value) for value in inside), (path, field)
        outside = [high + step, low - step if "minimum" in schema else low]
        outside = [value for value in outside if value != NO_LIMIT or not field.startswith("max_")]
        assert not any(is_taken(path, field, value) for value in outside), (path, field)
        assert not math.isinf(high)
        seen.add(field)
    assert seen >= {"temperature", "top_p", "top_k", "seed", "n", "best_of", "max_tokens", "priority", "top_logprobs"}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/chat"])
def test_fields_that_ask_for_nothing_are_described_and_taken(path):
    name = document()["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    properties = document()["components"]["schemas"][name.rpartition("/")[2]]["properties"]
    neutral = {field: schema["enum"] for field, schema in properties.items() if "enum" in schema and field != "model"}
    assert {"tools", "verbosity", "grammar"} <= set(neutral)
    for field, values in neutral.items():
        assert all(is_taken(path, field, value) for value in values)
        assert not is_taken(path, field, "something else")
    assert is_taken(path, "user", {"any": ["thing"]})
    assert all(is_taken(path, "unknown", value) for value in (None, "", [], {}))
    assert not any(is_taken(path, "unknown", value) for value in (0, False, "x", [0], {"a": None}))
