"""Knows ``POST /v1/chat/completions``, as OpenAI's clients speak it, with vLLM's extra fields and ours."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from paceline.core.outputs import CompletionDelta
from paceline.server.answers import TokenUsage, UsageInStream, chunk_extra, logprobs_dict, metrics_dict, token_dict
from paceline.server.calls import Answer, Call, Outcome
from paceline.server.openapi import takes
from paceline.server.schemas import ChatCompletionRequest
from paceline.server.schemas.answers import ChatCompletion
from paceline.server.service import Numbered, Service
from paceline.server.sse import DONE, EventStream, event


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", **takes(ChatCompletionRequest, ChatCompletion, streams=True))
    async def chat_completions(request: Request) -> Response:
        call = await service.call(request, ChatCompletionRequest)
        if call.body.stream:
            updates = await service.begun(request, call)
            events = _events(service, call, updates)
            return EventStream(events, source=updates, write_seconds=service.limits.write_seconds)
        (outcome,) = await service.outcomes(request, call)
        # Off the event loop: many answers with the alternatives of each token make megabytes.
        return await asyncio.to_thread(lambda: JSONResponse(_whole(service, call, outcome)))

    return router


def _whole(service: Service, call: Call[ChatCompletionRequest], outcome: Outcome) -> dict[str, Any]:
    usage = TokenUsage(call.num_prompt_tokens, outcome.num_output_tokens, outcome.metrics.num_cached_tokens)
    choices = [_choice(service, call, index, answer) for index, answer in enumerate(outcome.answers)]
    body = _envelope(service, call, "chat.completion") | {"choices": choices, "usage": usage.as_dict()}
    return body | ({"paceline": metrics_dict(outcome.metrics)} if call.extras else {})


def _envelope(service: Service, call: Call[ChatCompletionRequest], kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{call.id}",
        "object": kind,
        "created": int(time.time()),
        "model": service.model_name,
        "service_tier": "default",
        "system_fingerprint": service.fingerprint,
    }


def _choice(service: Service, call: Call[ChatCompletionRequest], index: int, answer: Answer) -> dict[str, Any]:
    wants = call.params.logprobs is not None
    extra = {"paceline": token_dict(service.tokenizer(), answer.token_ids, answer.drafted)} if call.extras else {}
    return {
        "index": index,
        "message": {"role": "assistant", "content": answer.text, "refusal": None},
        "logprobs": logprobs_dict(service.tokenizer(), answer.logprobs) if wants else None,
        "finish_reason": answer.finish_reason,
        "stop_reason": answer.stop_reason,
    } | extra


async def _events(
    service: Service, call: Call[ChatCompletionRequest], updates: AsyncGenerator[Numbered]
) -> AsyncGenerator[bytes]:
    """One chunk per answer and step; the chunk with usage, which has no choices, is last."""
    envelope = _envelope(service, call, "chat.completion.chunk")
    usage = TokenUsage(call.num_prompt_tokens)
    counts = UsageInStream(usage, call.body.stream_options)
    unopened = iter(range(call.params.n))
    async for _, update in updates:
        # With the first token, not before: clients take the first chunk for it.
        for index in unopened:
            yield event(envelope | {"choices": [_opening(index)]} | counts.now())
        for place, delta in enumerate(update.deltas, 1):
            usage.completion += len(delta.token_ids)
            last = update.metrics if place == len(update.deltas) else None
            if last is not None:
                usage.cached = last.num_cached_tokens
            extra = chunk_extra(service.engine.tokenizer, delta, last) if call.extras else {}
            yield event(envelope | {"choices": [_chunk(service, delta)]} | extra | counts.now())
    if counts.at_end:
        yield event(envelope | {"choices": [], "usage": usage.as_dict()})
    yield DONE


def _opening(index: int) -> dict[str, Any]:
    delta = {"role": "assistant", "content": ""}
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _chunk(service: Service, delta: CompletionDelta) -> dict[str, Any]:
    return {
        "index": delta.index,
        "delta": {"content": delta.text},
        "logprobs": None if delta.logprobs is None else logprobs_dict(service.tokenizer(), delta.logprobs),
        "finish_reason": delta.finish_reason,
        "stop_reason": delta.stop_reason,
    }
