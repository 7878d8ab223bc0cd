"""Knows the endpoints that generate nothing: health, readiness, version, models, statistics, metrics."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from paceline import __version__
from paceline.core.errors import EngineDeadError
from paceline.server.errors import ApiError
from paceline.server.metrics import wants_openmetrics
from paceline.server.openapi import TextResponse, answers
from paceline.server.schemas.answers import Model, Models, Status, Version
from paceline.server.service import Service

_DEAD = {503: "The engine has stopped, or a step of it does not end."}


def routes(service: Service) -> APIRouter:
    router = APIRouter()
    _add_probes(router, service)
    _add_models(router, service)

    @router.get("/version", **answers(Version))
    async def version() -> dict[str, str]:
        return {"version": __version__}

    @router.get("/stats", **answers(errors=_DEAD))
    async def stats() -> dict[str, Any]:
        return await service.shared("stats", service.engine.stats)

    @router.get("/metrics", response_class=TextResponse, **answers())
    async def metrics(request: Request) -> Response:
        """In Prometheus' text format, or in OpenMetrics' where Accept names it."""
        wanted = wants_openmetrics(request.headers.get("accept", ""))
        ask = partial(service.metrics.text, openmetrics_format=wanted)
        text, kind = await service.shared("openmetrics" if wanted else "metrics", ask)
        return Response(text, media_type=kind, headers={"Vary": "Accept"})

    return router


def _add_probes(router: APIRouter, service: Service) -> None:
    @router.get("/health", **answers(Status, errors=_DEAD))
    async def health() -> dict[str, str]:
        """Whether the engine works: 503 once it is dead, or its step does not end."""
        if not service.engine.alive:
            raise EngineDeadError("the engine has stopped")
        service.check_progress()
        return {"status": "ok", "model": service.model_name}

    @router.get("/ready", **answers(Status, errors={503: "Loading, stalled, dead or shutting down."}))
    async def ready() -> dict[str, str]:
        """Whether a call made now would begin soon: 503 while loading, stalled, dead or draining."""
        if service.admission.draining:
            raise ApiError(503, "the server is shutting down", code="draining")
        if not service.engine.ready:
            raise ApiError(503, "the engine is not ready", code="not_ready")
        return {"status": "ready", "model": service.model_name}


def _add_models(router: APIRouter, service: Service) -> None:
    now = int(time.time())

    def described(name: str) -> dict[str, Any]:
        length = service.engine.max_model_len
        return {"id": name, "object": "model", "created": now, "owned_by": "paceline", "max_model_len": length}

    @router.get("/v1/models", **answers(Models))
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [described(name) for name in service.model_names]}

    @router.get("/v1/models/{name:path}", **answers(Model, errors={404: "There is no such model."}))
    async def one_model(name: str) -> dict[str, Any]:
        service.check_model(name)
        return described(name)
