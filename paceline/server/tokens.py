"""Knows ``POST /tokenize`` and ``POST /detokenize``, as vLLM has them."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from paceline.core.errors import out_of_range
from paceline.server.openapi import takes
from paceline.server.schemas import DetokenizeRequest, TokenizeRequest
from paceline.server.schemas.answers import Detokenized, Tokenized
from paceline.server.service import Service


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/tokenize", **takes(TokenizeRequest, Tokenized))
    async def tokenize(request: Request) -> Response:
        body = await service.body(request, TokenizeRequest)
        return await asyncio.to_thread(lambda: JSONResponse(_tokenized(service, body)))

    @router.post("/detokenize", **takes(DetokenizeRequest, Detokenized))
    async def detokenize(request: Request) -> Response:
        body = await service.body(request, DetokenizeRequest)
        return await asyncio.to_thread(lambda: JSONResponse({"prompt": _text(service, body)}))

    return router


def _tokenized(service: Service, body: TokenizeRequest) -> dict[str, Any]:
    body.check()
    tokenizer = service.tokenizer("prompt" if body.messages is None else "messages", "it cannot tokenize")
    if body.messages is not None:
        messages = [message.for_template() for message in body.messages]
        tokens = service.chat(messages, add_generation_prompt=body.add_generation_prompt is not False)
    else:
        text = body.prompt or ""
        service.check_length(len(text), "prompt")
        tokens = tokenizer.encode(text, add_special_tokens=body.add_special_tokens is not False)
    names = [tokenizer.backend.id_to_token(token) or "" for token in tokens] if body.return_token_strs else None
    return {
        "count": len(tokens),
        "max_model_len": service.engine.max_model_len,
        "tokens": tokens,
        "token_strs": names,
    }


def _text(service: Service, body: DetokenizeRequest) -> str:
    tokenizer = service.tokenizer("tokens", "it cannot detokenize")
    bad = next((token for token in body.tokens if not 0 <= token < service.engine.vocab_size), None)
    if bad is not None:
        raise out_of_range("tokens", bad, f"token ids in [0, {service.engine.vocab_size - 1}]")
    return tokenizer.decode(body.tokens, skip_special_tokens=False)
