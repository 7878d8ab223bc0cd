"""Knows which endpoints make up the service, and the doors before them."""

from __future__ import annotations

from fastapi import FastAPI

from paceline.core.service_config import Limits, ServiceConfig
from paceline.server import (
    chat,
    chat_completions,
    completions,
    doors,
    embeddings,
    errors,
    reception,
    status,
    targets,
    tokens,
)
from paceline.server.engine_client import EngineClient
from paceline.server.openapi import App
from paceline.server.service import Service


def create_app(engine: EngineClient, *, limits: Limits | None = None, config: ServiceConfig | None = None) -> FastAPI:
    """The ASGI application over one engine; the caller owns the engine and closes it.

    Without a ``config`` there are no doors: any Host, no keys, no cross-origin pages; other options have their
    defaults. ``serve`` always has one.
    ``app.state.service`` is the ``Service``.

    Endpoints: ``GET /health``, ``/ready``, ``/version``, ``/stats``, ``/metrics``, ``/openapi.json``, ``/v1/models``;
    ``POST /v1/chat/completions``, ``/v1/completions``, ``/v1/embeddings``, ``/chat``, ``/tokenize``, ``/detokenize``.
    """
    # FastAPI's own documentation pages load scripts from elsewhere; its redirects go where the Host header says.
    app = App(title="Paceline", docs_url=None, redoc_url=None, redirect_slashes=False)
    errors.install(app)
    service = Service(engine, limits or Limits(), config or ServiceConfig())
    app.state.service = service
    for family in (status, chat_completions, completions, embeddings, tokens, chat):
        app.include_router(family.routes(service))
    app.add_middleware(targets.Spellings)
    if config is not None:
        doors.install(app, config)
    app.add_middleware(reception.Reception, service.admission, service.metrics.answered)
    return app
