"""Knows which endpoints make up the service."""

from __future__ import annotations

from fastapi import FastAPI

from paceline.core.service_config import Limits
from paceline.server import chat, chat_completions, errors, status
from paceline.server.engine_client import EngineClient
from paceline.server.service import Service


def create_app(engine: EngineClient, *, limits: Limits | None = None) -> FastAPI:
    """The ASGI application over one engine; the caller owns the engine and closes it.

    Endpoints: ``GET /health``, ``/stats``, ``/v1/models``; ``POST /v1/chat/completions``, ``/chat``.
    """
    # FastAPI's own documentation pages load scripts from elsewhere.
    app = FastAPI(title="Paceline", openapi_url=None, docs_url=None, redoc_url=None)
    errors.install(app)
    service = Service(engine, limits or Limits())
    for family in (status, chat_completions, chat):
        app.include_router(family.routes(service))
    return app
