"""Knows how a request body becomes a call of the engine, and a call becomes updates or whole answers."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from starlette.requests import Request

from paceline.core.call import CallOptions
from paceline.core.errors import EngineDeadError, InvalidRequestError
from paceline.core.outputs import CompletionDelta, RequestMetrics, StreamUpdate, TokenLogprobs
from paceline.core.params import SamplingParams
from paceline.core.service_config import Limits
from paceline.server.admission import Admission, Visit
from paceline.server.bodies import parse_json, read_body
from paceline.server.disconnect import unless_disconnected
from paceline.server.engine_client import EngineClient
from paceline.server.errors import ApiError
from paceline.server.reception import visit_of
from paceline.server.schemas import ChatCompletionRequest, ChatRequest
from paceline.text import Tokenizer

Body = TypeVar("Body", ChatRequest, ChatCompletionRequest)


@dataclass(frozen=True, slots=True)
class Call(Generic[Body]):
    """A checked request, ready for the engine."""

    id: str
    body: Body
    prompt: list[int]
    params: SamplingParams
    visit: Visit


@dataclass(slots=True)
class Answer:
    """One whole answer."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    drafted: list[bool] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def add(self, delta: CompletionDelta) -> None:
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.drafted += delta.token_drafted
        self.logprobs += delta.logprobs or []
        self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason


class Service:
    """The engine as the endpoints see it."""

    def __init__(self, engine: EngineClient, limits: Limits) -> None:
        self.engine, self.limits = engine, limits
        self.admission = Admission(limits)
        self.model_name = served_name(engine.model_name)
        self._running: set[str] = set()

    def tokenizer(self) -> Tokenizer:
        if self.engine.tokenizer is None:
            raise InvalidRequestError("this model has no tokenizer, so it cannot chat", param="messages")
        return self.engine.tokenizer

    async def call(self, request: Request, kind: type[Body]) -> Call[Body]:
        """Reads, checks and tokenises a body, off the event loop.

        Raises:
            ApiError, InvalidRequestError, pydantic.ValidationError: what is wrong with it.
        """
        raw = await read_body(request, self.limits)
        visit = visit_of(request)
        visit.admit()
        return await asyncio.to_thread(self._prepare, raw, kind, visit)

    def _prepare(self, raw: bytes, kind: type[Body], visit: Visit) -> Call[Body]:
        body = kind.model_validate(parse_json(raw))
        self.check_model(body.model)
        prompt = self.tokenizer().encode_chat(body.conversation)
        # A chat that names no limit gets what fits beside its prompt; where nothing fits, the engine says so.
        room = max(1, self.engine.max_model_len - len(prompt))
        params = body.params(min(self.limits.default_max_tokens, room))
        visit.num_prompt_tokens = len(prompt)
        return Call(uuid.uuid4().hex, body, prompt, params, visit)

    def check_model(self, name: str | None) -> None:
        """Only compares strings; nothing is looked up anywhere."""
        if name is not None and name != self.model_name:
            shown = name if len(name) <= 100 and name.isprintable() else "so named"
            raise ApiError(404, f"there is no model {shown}; this server has {self.model_name}", code="model_not_found")

    async def updates(self, call: Call[Body]) -> AsyncGenerator[StreamUpdate]:
        """The call's updates. Leaving early, for whatever reason, aborts the call.

        Raises:
            ApiError: 500, an answer failed; 503, the service ended it.
        """
        if not self.engine.alive:
            raise EngineDeadError("the engine has stopped")
        self._running.add(call.id)
        client, finished = call.visit.client, False
        try:
            # The salt keeps clients from learning, by timing, which prompts others have sent.
            options = CallOptions(speculate=call.body.speculation is not False, client=client, cache_salt=client)
            stream = self.engine.generate(call.prompt, call.params, request_id=call.id, options=options)
            async for update in stream:
                finished = update.finished
                for delta in update.deltas:
                    call.visit.num_output_tokens += len(delta.token_ids)
                    _check(delta)
                yield update
        finally:
            self._running.discard(call.id)
            if not finished:
                self.engine.abort(call.id)

    def abort_all(self) -> None:
        """Ends every call in progress with an error that says so."""
        for name in tuple(self._running):
            self.engine.abort(name)

    async def begun(self, request: Request, call: Call[Body]) -> AsyncGenerator[StreamUpdate]:
        """``updates`` with the first one awaited, so that a call that fails at once fails with a proper status."""
        updates = self.updates(call)
        try:
            first = await unless_disconnected(request.receive, _next(updates))
        except BaseException:
            await updates.aclose()
            raise
        return _chain(first, updates)

    async def answers(self, request: Request, call: Call[Body]) -> tuple[list[Answer], RequestMetrics]:
        """Whole answers; the call is aborted if the client goes away."""
        return await unless_disconnected(request.receive, self._collect(call))

    async def _collect(self, call: Call[Body]) -> tuple[list[Answer], RequestMetrics]:
        answers = [Answer() for _ in range(call.params.n)]
        metrics = RequestMetrics()
        async with aclosing(self.updates(call)) as updates:
            async for update in updates:
                for delta in update.deltas:
                    answers[delta.index].add(delta)
                metrics = update.metrics or metrics
        return answers, metrics


def served_name(model: str) -> str:
    """A model given by its directory is served under the directory's name: answers show no paths."""
    is_path = model.startswith(("/", "./", "../", "~")) or model.count("/") > 1
    return model.rstrip("/").rpartition("/")[2] if is_path else model


def _check(delta: CompletionDelta) -> None:
    if delta.finish_reason == "error":
        raise ApiError(500, "this request failed in the engine", code="generation_failed")
    if delta.finish_reason == "abort":
        raise ApiError(503, "this request was aborted", code="aborted")


async def _next(updates: AsyncIterator[StreamUpdate]) -> StreamUpdate:
    async for update in updates:
        return update
    raise EngineDeadError("the engine ended a call without an answer")


async def _chain(first: StreamUpdate, rest: AsyncGenerator[StreamUpdate]) -> AsyncGenerator[StreamUpdate]:
    async with aclosing(rest):
        yield first
        async for update in rest:
            yield update
