"""Knows the endpoints that generate nothing: health, models, statistics."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import APIRouter

from paceline.core.errors import EngineDeadError
from paceline.server.service import Service


def routes(service: Service) -> APIRouter:
    router = APIRouter()
    model = {
        "id": service.model_name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "paceline",
        "max_model_len": service.engine.max_model_len,
    }

    @router.get("/health")
    async def health() -> dict[str, str]:
        if not service.engine.alive:
            raise EngineDeadError("the engine has stopped")
        return {"status": "ok", "model": service.model_name}

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @router.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        service.check_model(name)
        return model

    @router.get("/stats")
    async def stats() -> dict[str, Any]:
        return await asyncio.to_thread(service.engine.stats)

    return router
