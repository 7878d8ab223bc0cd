"""Knows how the service describes itself: OpenAPI made from the schemas that check bodies; no page, no scripts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from paceline import __version__
from paceline.server import schemas
from paceline.server.schemas.answers import Error
from paceline.server.schemas.reading import NOTHING

REQUESTS = (
    schemas.ChatCompletionRequest,
    schemas.CompletionRequest,
    schemas.EmbeddingRequest,
    schemas.ChatRequest,
    schemas.TokenizeRequest,
    schemas.DetokenizeRequest,
)
_REF = "#/components/schemas/{model}"
_ANY = {
    401: "No valid API key, where keys are set.",
    403: "The Host header names another server.",
    431: "The request line and headers are too large.",
    500: "An error of the server's own.",
}
_BODY = {
    400: "The body is no JSON, or a field is unknown, unsupported or out of range.",
    404: "The model is not the one that is served.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    429: "The server, or the key's share of it, is full; Retry-After says when to come back.",
    503: "The engine has stopped, or the server is shutting down.",
}
_STREAMED = "OK; server-sent events, one JSON object in the data of each, if the body asks for a stream."


class Documented(TypedDict):
    """Arguments of a FastAPI route."""

    response_model: None
    responses: dict[int | str, dict[str, Any]]
    openapi_extra: dict[str, Any]


def _errors(described: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"schema": {"$ref": _REF.format(model=Error.__name__)}}}
    return {status: {"description": about, "content": content} for status, about in sorted(described.items())}


def answers(kind: type[BaseModel] | None = None, *, errors: Mapping[int, str] | None = None) -> Documented:
    """A route without a body; ``kind`` None: JSON, or another type that the route's response class names."""
    ok: dict[str, Any] = {"description": "OK"} | ({} if kind is None else {"model": kind})
    return {"response_model": None, "responses": {200: ok, **_errors({**_ANY, **(errors or {})})}, "openapi_extra": {}}


def takes(body: type[BaseModel], kind: type[BaseModel], *, streams: bool = False) -> Documented:
    """A route that takes a JSON body; one that ``streams`` answers with events if the body asks for them."""
    made = answers(kind, errors=_BODY)
    if streams:
        # Without a schema: one would be of a single event, which readers of OpenAPI 3.1 do not agree on.
        made["responses"][200] |= {"description": _STREAMED, "content": {"text/event-stream": {}}}
    content = {"application/json": {"schema": {"$ref": _REF.format(model=body.__name__)}}}
    made["openapi_extra"] = {"requestBody": {"required": True, "content": content}}
    return made


class App(FastAPI):
    """An application whose description has the bodies that its routes read themselves."""

    def openapi(self) -> dict[str, Any]:
        if not self.openapi_schema:
            self.openapi_schema = _document(self)
        return self.openapi_schema


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title="Paceline",
        version=__version__,
        routes=app.routes,
        description="Text generation with speculative decoding that never changes the text.",
    )
    components = document.setdefault("components", {})
    _, definitions = models_json_schema([(model, "validation") for model in (*REQUESTS, Error)], ref_template=_REF)
    for model in REQUESTS:
        definitions["$defs"][model.__name__]["properties"]["model"] = _name(app)
    taken = definitions["$defs"]
    if app.state.service.config.unknown_fields != "refuse":
        taken = _open(taken)
    components.setdefault("schemas", {}).update(taken)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    # With or without: whether keys are set is up to who runs the service.
    document["security"] = [{}, {"key": []}]
    _drop_unused(document)
    return document


def _name(app: FastAPI) -> dict[str, Any]:
    """The only model there is."""
    return {"enum": [*app.state.service.model_names, None], "description": "The model that is served."}


def _open(schema: Any) -> Any:
    """The same, where unknown fields are taken whatever they hold."""
    if isinstance(schema, list):
        return [_open(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {name: _open(one) for name, one in schema.items() if (name, one) != ("additionalProperties", NOTHING)}


def _operations(document: dict[str, Any]) -> Iterable[dict[str, Any]]:
    return (operation for path in document["paths"].values() for operation in path.values())


def _drop_unused(document: dict[str, Any]) -> None:
    """FastAPI's own validation error, which this service never answers with."""
    for operation in _operations(document):
        operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


class TextResponse(Response):
    media_type = "text/plain"
