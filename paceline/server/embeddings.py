"""Knows ``POST /v1/embeddings``: texts or tokens in, one vector each, in OpenAI's form."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from paceline.server.answers import TokenUsage
from paceline.server.calls import Call, Outcome, join_metrics
from paceline.server.errors import ApiError
from paceline.server.openapi import takes
from paceline.server.schemas import EmbeddingRequest
from paceline.server.schemas.answers import Embeddings
from paceline.server.service import Service


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/embeddings", **takes(EmbeddingRequest, Embeddings))
    async def embeddings(request: Request) -> Response:
        call = await service.call(request, EmbeddingRequest)
        outcomes = await service.outcomes(request, call)
        return await asyncio.to_thread(lambda: JSONResponse(_whole(service, call, outcomes)))

    return router


def _whole(service: Service, call: Call[EmbeddingRequest], outcomes: list[Outcome]) -> dict[str, Any]:
    metrics = join_metrics(outcomes)
    usage = TokenUsage(call.num_prompt_tokens, cached=metrics.num_cached_tokens).as_dict()
    del usage["completion_tokens"], usage["completion_tokens_details"]
    data = [
        {"object": "embedding", "index": index, "embedding": _written(outcome, call.body.encoding_format)}
        for index, outcome in enumerate(outcomes)
    ]
    body = {"object": "list", "data": data, "model": service.model_name, "usage": usage}
    figures = {
        "queue_time": metrics.queue_time,
        "num_preemptions": metrics.num_preemptions,
        "num_truncated_tokens": metrics.num_truncated_tokens,
    }
    return body | ({"paceline": figures} if call.extras else {})


def _written(outcome: Outcome, encoding_format: str | None) -> list[float] | str:
    """Numbers, or float32 little-endian in base64, which is what OpenAI's client asks for."""
    if outcome.embedding is None:
        raise ApiError(500, "this request failed in the engine", code="generation_failed")
    if encoding_format == "base64":
        return base64.b64encode(np.asarray(outcome.embedding, dtype="<f4").tobytes()).decode()
    return outcome.embedding
