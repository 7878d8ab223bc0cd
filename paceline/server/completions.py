"""Knows ``POST /v1/completions``: prompts in, each continued ``n`` times, in OpenAI's older form."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from paceline.core.outputs import CompletionDelta, TokenLogprobs
from paceline.server.answers import TokenUsage, UsageInStream, chunk_extra, metrics_dict, token_dict
from paceline.server.calls import Answer, Call, Outcome, join_metrics
from paceline.server.legacy_logprobs import LegacyLogprobs, join_parts
from paceline.server.openapi import takes
from paceline.server.schemas import CompletionRequest
from paceline.server.schemas.answers import Completion
from paceline.server.service import Numbered, Service
from paceline.server.sse import DONE, EventStream, event

Logprobs = dict[str, Any]


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/completions", **takes(CompletionRequest, Completion, streams=True))
    async def completions(request: Request) -> Response:
        call = await service.call(request, CompletionRequest)
        for name, value in (("echo", call.body.echo or None), ("logprobs", call.params.logprobs)):
            if value is not None:
                service.tokenizer(name, "its tokens have no text")
        if call.body.stream:
            updates = await service.begun(request, call)
            events = CompletionStream(service, call).events(updates)
            return EventStream(events, source=updates, write_seconds=service.limits.write_seconds)
        outcomes = await service.outcomes(request, call)
        # Off the event loop: an echoed prompt can have thousands of tokens with their alternatives.
        return await asyncio.to_thread(lambda: JSONResponse(_whole(service, call, outcomes)))

    return router


def _envelope(service: Service, call: Call[CompletionRequest]) -> dict[str, Any]:
    now = int(time.time())
    return {
        "id": f"cmpl-{call.id}",
        "object": "text_completion",
        "created": now,
        "model": service.model_name,
        "system_fingerprint": service.fingerprint,
    }


def _whole(service: Service, call: Call[CompletionRequest], outcomes: list[Outcome]) -> dict[str, Any]:
    metrics = join_metrics(outcomes)
    nothing = call.body.limit == 0
    num_tokens = 0 if nothing else sum(outcome.num_output_tokens for outcome in outcomes)
    choices: list[dict[str, Any]] = []
    for place, outcome in enumerate(outcomes):
        echoed = Echo(service, call, place, outcome.prompt_logprobs) if call.body.echo else None
        for answer in outcome.answers:
            kept = Answer(finish_reason="length") if nothing else answer
            choices.append(_choice(service, call, place, kept, echoed) | {"index": len(choices)})
    return (
        _envelope(service, call)
        | {
            "choices": choices,
            "usage": TokenUsage(call.num_prompt_tokens, num_tokens, metrics.num_cached_tokens).as_dict(),
        }
        | ({"paceline": metrics_dict(metrics)} if call.extras else {})
    )


def _choice(
    service: Service, call: Call[CompletionRequest], place: int, answer: Answer, echoed: Echo | None
) -> dict[str, Any]:
    text = answer.text if echoed is None else echoed.text + answer.text
    logprobs = None
    if call.params.logprobs is not None:
        start = 0 if echoed is None else len(echoed.text)
        own = _lists(service, call, place, start).part(answer.token_ids, answer.logprobs, end=len(text))
        logprobs = own if echoed is None or echoed.logprobs is None else join_parts([echoed.logprobs, own])
    tokenizer = service.engine.tokenizer
    extra = {"paceline": token_dict(tokenizer, answer.token_ids, answer.drafted)} if call.extras else {}
    return {
        "text": text,
        "logprobs": logprobs,
        "finish_reason": answer.finish_reason,
        "stop_reason": answer.stop_reason,
    } | extra


def _lists(service: Service, call: Call[CompletionRequest], place: int, start: int) -> LegacyLogprobs:
    """Takes an answer's tokens; ``start`` is the length of the text before it."""
    return LegacyLogprobs(
        service.tokenizer(),
        skip_special_tokens=call.params.skip_special_tokens,
        after=call.prompts[place],
        start=start,
    )


class Echo:
    """A prompt as the choices repeat it: its text, and its log-probabilities if they are wanted."""

    def __init__(
        self, service: Service, call: Call[CompletionRequest], place: int, entries: list[TokenLogprobs | None]
    ) -> None:
        tokenizer = service.tokenizer()
        written, token_ids = call.body.prompt[place], call.prompts[place]
        lists = LegacyLogprobs(tokenizer, skip_special_tokens=call.params.skip_special_tokens)
        made = lists.part(token_ids, entries)
        # What was given as text is given back as it was, whatever the tokenizer made of it.
        self.text = written if isinstance(written, str) else lists.text
        self.logprobs: Logprobs | None = None
        if call.params.prompt_logprobs is not None:
            made["text_offset"] = [min(offset, len(self.text)) for offset in made["text_offset"]]
            self.logprobs = made


class CompletionStream:
    """The events of one call: chunks of any choice as they come, the usage last if it is wanted."""

    def __init__(self, service: Service, call: Call[CompletionRequest]) -> None:
        self.service, self.call = service, call
        self.usage = TokenUsage(call.num_prompt_tokens)
        self._lists: dict[int, LegacyLogprobs] = {}
        self._lengths = [0] * (len(call.prompts) * call.params.n)
        self._begun: set[int] = set()

    async def events(self, updates: AsyncGenerator[Numbered]) -> AsyncGenerator[bytes]:
        envelope = _envelope(self.service, self.call)
        counts = UsageInStream(self.usage, self.call.body.stream_options)
        async for place, update in updates:
            if self.call.body.echo and place not in self._begun:
                for choice in await asyncio.to_thread(self._echoes, place, update.prompt_logprobs or []):
                    yield event(envelope | {"choices": [choice]} | counts.now())
            self._begun.add(place)
            for number, delta in enumerate(update.deltas, 1):
                last = update.metrics if number == len(update.deltas) else None
                if last is not None:
                    self.usage.cached += last.num_cached_tokens
                extra = chunk_extra(self.service.engine.tokenizer, delta, last) if self.call.extras else {}
                choice = self._choice(place, delta)
                yield event(envelope | {"choices": [choice]} | extra | counts.now())
        if counts.at_end:
            yield event(envelope | {"choices": [], "usage": self.usage.as_dict()})
        yield DONE

    def _index(self, place: int, number: int) -> int:
        return place * self.call.params.n + number

    def _echoes(self, place: int, entries: list[TokenLogprobs | None]) -> list[dict[str, Any]]:
        """The first chunk of each choice of a prompt."""
        echoed = Echo(self.service, self.call, place, entries)
        chunks = []
        for number in range(self.call.params.n):
            index = self._index(place, number)
            self._lengths[index] = len(echoed.text)
            chunks.append({"index": index, "text": echoed.text, "logprobs": echoed.logprobs, "finish_reason": None})
        return chunks

    def _choice(self, place: int, delta: CompletionDelta) -> dict[str, Any]:
        index = self._index(place, delta.index)
        if self.call.body.limit == 0:
            return {"index": index, "text": "", "logprobs": None, "finish_reason": "length", "stop_reason": None}
        self.usage.completion += len(delta.token_ids)
        if index not in self._lists and self.call.params.logprobs is not None:
            self._lists[index] = _lists(self.service, self.call, place, self._lengths[index])
        self._lengths[index] += len(delta.text)
        end = None if delta.finish_reason is None else self._lengths[index]
        return {
            "index": index,
            "text": delta.text,
            "logprobs": self._lists[index].part(delta.token_ids, delta.logprobs or [], end=end)
            if self.call.params.logprobs is not None
            else None,
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }
