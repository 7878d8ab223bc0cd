"""Knows how a request body becomes calls of the engine, and calls become updates or whole outcomes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from starlette.requests import Request

from paceline.core.errors import EngineDeadError, EngineStalledError, InvalidRequestError, out_of_range
from paceline.core.outputs import CompletionDelta, StreamUpdate
from paceline.core.service_config import Limits, ServiceConfig
from paceline.engine.overflow import context_overflows, longest_is
from paceline.server.admission import Limiter, Visit
from paceline.server.asking import ask_of, check_answers
from paceline.server.bodies import parse_json, read_body
from paceline.server.calls import Body, Call, Outcome
from paceline.server.disconnect import unless_disconnected
from paceline.server.engine_client import EngineClient
from paceline.server.errors import ApiError
from paceline.server.merging import begin, merge
from paceline.server.metrics import Metrics
from paceline.server.naming import fingerprint, served_name
from paceline.server.reception import visit_of
from paceline.server.schemas.base import Body as AnyBody
from paceline.server.schemas.reading import Reading
from paceline.text import Tokenizer, bad_word_ids

Kind = TypeVar("Kind", bound=AnyBody)
Figures = TypeVar("Figures")
EXTRAS = "X-Paceline-Extras"
"""A header of requests: "off" leaves the ``paceline`` objects of an answer out, "on" has them."""
CHARACTERS_PER_TOKEN = 32
"""No text has that many on average; common ones have 4."""
AT_ONCE_SECONDS = 1.0
"""What goes wrong later than this goes wrong inside a stream that has begun."""
Numbered = tuple[int, StreamUpdate]
"""A prompt's number within its call, and what happened to it."""


class Service:
    """The engine as the endpoints see it."""

    def __init__(self, engine: EngineClient, limits: Limits, config: ServiceConfig) -> None:
        self.engine, self.limits, self.config = engine, limits, config
        self.admission = Limiter(limits)
        self.model_names = config.served_model_name or (served_name(engine.model_name),)
        self.model_name = self.model_names[0]
        self.fingerprint = fingerprint(engine)
        self.metrics = Metrics(engine, self.model_name)
        self._running: set[str] = set()
        self._asked: dict[str, asyncio.Task[Any]] = {}

    def tokenizer(self, param: str = "messages", why: str = "it cannot chat") -> Tokenizer:
        if self.engine.tokenizer is None:
            raise InvalidRequestError(f"this model has no tokenizer, so {why}", param=param)
        return self.engine.tokenizer

    def chat(self, messages: list[dict[str, str]], *, add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a conversation as the model's template writes it."""
        tokenizer = self.tokenizer()
        self.check_length(sum(len(text) for message in messages for text in message.values()), "messages")
        return tokenizer.encode_chat(messages, add_generation_prompt=add_generation_prompt)

    def prompt(self, prompt: str | list[int], param: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, or token ids that the model has."""
        if isinstance(prompt, str):
            tokenizer = self.tokenizer(param, "its prompts are token ids")
            self.check_length(len(prompt), param)
            prompt = tokenizer.encode(prompt, add_special_tokens=add_special_tokens, param=param)
        bad = next((token for token in prompt if not 0 <= token < self.engine.vocab_size), None)
        if bad is not None:
            raise out_of_range(param, bad, f"token ids in [0, {self.engine.vocab_size - 1}]")
        if not prompt:
            raise InvalidRequestError(f"{param} must not be empty", param=param)
        return prompt

    def check_length(self, num_characters: int, param: str) -> None:
        """Refuses what is far too long before it is tokenised, which takes seconds per megabyte."""
        most = CHARACTERS_PER_TOKEN * self.engine.max_model_len
        if num_characters > most:
            raise InvalidRequestError(
                f"{longest_is(self.engine.max_model_len)}, {param} has {num_characters} characters\n"
                f"Shorten it; more than {most} characters are not even counted.",
                param=param,
                code="context_length_exceeded",
            )

    async def call(self, request: Request, kind: type[Body]) -> Call[Body]:
        """Reads, checks and tokenises a body, off the event loop.

        Raises:
            ApiError, InvalidRequestError, pydantic.ValidationError: what is wrong with it.
        """
        raw = await read_body(request, self.limits)
        visit = visit_of(request.scope)
        visit.admit()
        self.check_progress()
        extras = self._wants_extras(request)
        call = await asyncio.to_thread(self._prepare, raw, kind, visit, extras=extras)
        visit.admit(len(call.prompts) * call.params.num_samples)
        return call

    async def body(self, request: Request, kind: type[Kind]) -> Kind:
        """Reads and checks a body that needs no call of the engine; raises as ``call``."""
        raw = await read_body(request, self.limits)
        visit = visit_of(request.scope)
        visit.admit()
        return await asyncio.to_thread(self._parse, raw, kind, visit)

    def _parse(self, raw: bytes, kind: type[Kind], visit: Visit) -> Kind:
        reading = Reading(self.config.unknown_fields)
        body = kind.of(parse_json(raw), reading)
        self.check_model(body.model)
        if self.config.unknown_fields == "warn" and reading.ignored:
            visit.ignored_fields = reading.ignored
            self.metrics.ignored_fields.inc(len(reading.ignored))
        return body

    def _wants_extras(self, request: Request) -> bool:
        return request.headers.get(EXTRAS, self.config.extras).strip().lower() != "off"

    def _prepare(self, raw: bytes, kind: type[Body], visit: Visit, *, extras: bool) -> Call[Body]:
        body = self._parse(raw, kind, visit)
        prompts = body.prompts(self)
        # A call that names no limit gets what there is room for beside its prompt; if none, the engine says so.
        overflow = context_overflows[body.context_overflow or self.engine.context_overflow]
        room = overflow.room(max(map(len, prompts)), self.engine.max_model_len)
        params = body.params(min(self.limits.default_max_tokens, room))
        options = body.options(visit.client)
        if params.bad_words and self.engine.tokenizer is not None:
            # Here, where it holds up nobody else: the engine takes calls one by one, and this thread is the call's own.
            options = replace(options, bad_words_token_ids=bad_word_ids(self.engine.tokenizer, params.bad_words))
        if options.pooling is None:
            check_answers(len(prompts), params.num_samples, self.limits.max_answers_per_call)
        # The engine would refuse it too, but a prompt on its way there holds up the event loop, and this thread nobody.
        for length in {len(prompt) for prompt in prompts}:
            overflow.admit(ask_of(length, params, self.engine.max_model_len, generates=options.pooling is None))
        visit.num_prompt_tokens = sum(map(len, prompts))
        name = uuid.uuid4().hex
        return Call(name, body, prompts, params, replace(options, part_of=name), visit, extras)

    def check_progress(self) -> None:
        """Raises EngineStalledError if what waits for the engine might wait for ever."""
        if self.engine.stalled:
            raise EngineStalledError("a step of the engine does not end")

    async def shared(self, name: str, ask: Callable[[], Figures]) -> Figures:
        """Asks the engine in a thread; who asks for the same meanwhile gets the same answer.

        So a step that takes long holds one thread, however many ask: the others are for calls.
        """
        if name not in self._asked:
            task = self._asked[name] = asyncio.ensure_future(asyncio.to_thread(ask))
            task.add_done_callback(lambda _: self._asked.pop(name).exception())  # also where nobody waits any more
        figures: Figures = await asyncio.shield(self._asked[name])
        return figures

    def check_model(self, name: str | None) -> None:
        """Only compares strings; nothing is looked up anywhere."""
        if name is not None and name not in self.model_names:
            shown = name if len(name) <= 100 and name.isprintable() else "so named"
            raise ApiError(
                404, f"there is no model {shown}; this server has {', '.join(self.model_names)}", code="model_not_found"
            )

    def updates(self, call: Call[Body]) -> AsyncGenerator[Numbered]:
        """The updates of all of a call's prompts. Leaving early, for whatever reason, aborts what is not finished.

        Raises:
            ApiError: 500, an answer failed; 503, the service ended it.
        """
        return merge([self._updates_of(call, place) for place in range(len(call.prompts))])

    async def _updates_of(self, call: Call[Body], place: int) -> AsyncGenerator[StreamUpdate]:
        name, prompt = f"{call.id}-{place}", call.prompts[place]
        watch = self.metrics.watch(len(prompt), 1 if call.options.pooling is not None else call.params.num_samples)
        self._running.add(name)
        finished = refused = False
        try:
            # Closed at once when left early, not when the garbage collector comes by.
            async with aclosing(
                self.engine.generate(prompt, call.params, request_id=name, options=call.options)
            ) as stream:
                async for update in stream:
                    finished = update.finished
                    watch.see(update)
                    for delta in update.deltas:
                        call.visit.num_output_tokens += len(delta.token_ids)
                        _check(delta)
                    yield update
            if not finished:
                raise EngineDeadError("the engine ended a call without an answer")
        except InvalidRequestError:
            refused = True
            raise
        finally:
            self._running.discard(name)
            if not finished:
                self.engine.abort(name)
            if not refused:
                watch.leave()

    def abort_all(self) -> None:
        """Ends every call in progress with an error that says so."""
        for name in tuple(self._running):
            self.engine.abort(name)

    async def begun(self, request: Request, call: Call[Body]) -> AsyncGenerator[Numbered]:
        """``updates`` with the first one awaited, so that a call that fails at once fails with a proper status.

        For a moment only: a client that hears nothing takes the service for dead, and a call may have to wait for long.
        """
        return await unless_disconnected(request.receive, begin(self.updates(call), AT_ONCE_SECONDS))

    async def outcomes(self, request: Request, call: Call[Body]) -> list[Outcome]:
        """What came of each prompt; the call is aborted if the client goes away."""
        return await unless_disconnected(request.receive, self._collect(call))

    async def _collect(self, call: Call[Body]) -> list[Outcome]:
        outcomes = [Outcome.of(call.params) for _ in call.prompts]
        async with aclosing(self.updates(call)) as updates:
            async for place, update in updates:
                outcomes[place].add(update)
        return outcomes


def _check(delta: CompletionDelta) -> None:
    if delta.finish_reason == "error":
        raise ApiError(500, "this request failed in the engine", code="generation_failed")
    if delta.finish_reason == "abort":
        raise ApiError(503, "this request was aborted", code="aborted")
