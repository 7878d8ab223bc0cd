"""Knows ``POST /chat``: a message or a conversation in, one answer and how it went out."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from paceline.core.outputs import RequestMetrics
from paceline.server.answers import TokenUsage, metrics_dict, token_dict
from paceline.server.calls import Answer, Call
from paceline.server.openapi import takes
from paceline.server.schemas import ChatRequest
from paceline.server.schemas.answers import ChatAnswer
from paceline.server.service import Numbered, Service
from paceline.server.sse import EventStream, event


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/chat", **takes(ChatRequest, ChatAnswer, streams=True))
    async def chat(request: Request) -> Response:
        call = await service.call(request, ChatRequest)
        if call.body.stream:
            updates = await service.begun(request, call)
            events = _events(service, call, updates)
            return EventStream(events, source=updates, write_seconds=service.limits.write_seconds)
        (outcome,) = await service.outcomes(request, call)
        (answer,) = outcome.answers
        tokens = token_dict(service.tokenizer(), answer.token_ids, answer.drafted)
        return JSONResponse({"text": answer.text} | tokens | _ending(service, call, answer, outcome.metrics))

    return router


def _ending(service: Service, call: Call[ChatRequest], answer: Answer, metrics: RequestMetrics) -> dict[str, object]:
    usage = TokenUsage(call.num_prompt_tokens, len(answer.token_ids), metrics.num_cached_tokens)
    return {
        "finish_reason": answer.finish_reason,
        "stop_reason": answer.stop_reason,
        "model": service.model_name,
        "usage": usage.as_dict(),
        "metrics": metrics_dict(metrics),
    }


async def _events(
    service: Service, call: Call[ChatRequest], updates: AsyncGenerator[Numbered]
) -> AsyncGenerator[bytes]:
    """``{"delta", "tokens", "token_ids", "drafted"}`` per step, then the metrics."""
    answer, metrics = Answer(), RequestMetrics()
    async for _, update in updates:
        for delta in update.deltas:
            answer.add(delta)
            tokens = token_dict(service.tokenizer(), delta.token_ids, delta.token_drafted)
            yield event({"delta": delta.text} | tokens)
        metrics = update.metrics or metrics
    yield event({"delta": "", "tokens": [], "token_ids": [], "drafted": []} | _ending(service, call, answer, metrics))
