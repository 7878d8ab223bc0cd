"""Knows which endpoints make up the service, and the doors before them."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

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
from paceline.server.admission import Limiter
from paceline.server.engine_client import EngineClient
from paceline.server.errors import ApiError
from paceline.server.openapi import App
from paceline.server.service import Service

LOADING_RETRY = 5
"""Seconds after which a client may ask again while the model is loaded."""


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
    service = Service(engine, limits or Limits(), config or ServiceConfig())
    app.state.service = service
    for family in (status, chat_completions, completions, embeddings, tokens, chat):
        app.include_router(family.routes(service))
    app.add_middleware(targets.Spellings)
    return _guarded(app, service.admission, config, service.metrics.answered)


def create_loading_app(limits: Limits, config: ServiceConfig) -> FastAPI:
    """What stands in for the application while there is no engine yet: whoever gets in gets 503, on every path."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.mount("/", _loading)
    return _guarded(app, Limiter(limits), config, _uncounted)


def _uncounted(*_: object) -> None:
    """There are no metrics yet."""


async def _loading(_scope: Scope, _receive: Receive, _send: Send) -> None:
    again = {"Retry-After": str(LOADING_RETRY)}
    raise ApiError(503, "the model is being loaded", code="not_ready", headers=again)


def _guarded(
    app: FastAPI, admission: Limiter, config: ServiceConfig | None, answered: Callable[[Scope, int], None]
) -> FastAPI:
    errors.install(app)
    if config is not None:
        doors.install(app, config)
    app.add_middleware(reception.Reception, admission, answered)
    return app


class ExchangeableApp:
    """An application that may be exchanged for another between two requests."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)
