"""Asks a service for completions by token ids and notes when every chunk of an answer came; any OpenAI-like stream."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from httpx_sse import EventSource

from paceline.benchmark.arrivals import Load
from paceline.benchmark.tokens import TokenTimes

Body = Mapping[str, Any]
Answers = Sequence[Sequence[int]]
EXTRAS = "X-Paceline-Extras"
ANSWER_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class RequestChain:
    """Requests of which each can only be made once the one before is answered."""

    body: Callable[[Answers], Body]
    """Given the token ids of the answers so far."""
    num_turns: int = 1


@dataclass(frozen=True, slots=True)
class Served:
    """One request's fate."""

    times: TokenTimes
    """From when it was due; the tokens of a chunk share the time at which the chunk came."""
    num_prompt_tokens: int = 0
    """As the service counts them."""
    num_cached_tokens: int = 0
    """Of these, what the service had in its prefix cache."""
    error: str | None = None
    token_ids: Sequence[int] = ()
    turn: int = 0
    conversation: int = 0


@dataclass(slots=True)
class _Reading:
    """What a stream has said so far."""

    due: float
    times: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    error: str | None = None
    done: bool = False

    def take(self, data: str, now: float) -> None:
        if data == "[DONE]":
            self.done = True
            return
        chunk = json.loads(data)
        if "error" in chunk:
            self.error = str(chunk["error"].get("message", chunk["error"]))
            return
        extra = chunk.get("paceline") or {}
        if chunk.get("choices"):
            self.times += [now] * len(extra.get("drafted", ()))
            self.token_ids += extra.get("token_ids", ())
        if chunk.get("usage"):
            self.num_prompt_tokens = chunk["usage"]["prompt_tokens"]
            self.num_cached_tokens = (chunk["usage"].get("prompt_tokens_details") or {}).get("cached_tokens", 0)

    def served(self, conversation: int, turn: int) -> Served:
        error = self.error or (None if self.done else "the stream ended without its last event")
        times = TokenTimes(self.due, self.times)
        counts = self.num_prompt_tokens, self.num_cached_tokens
        return Served(times, *counts, error, self.token_ids, turn, conversation)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go."""

    url: str
    headers: Mapping[str, str]
    """Such as an API key."""

    @asynccontextmanager
    async def client(self, connections: int) -> AsyncIterator[httpx.AsyncClient]:
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        async with httpx.AsyncClient(
            base_url=self.url,
            headers={EXTRAS: "on", **self.headers},  # tokens are counted by them
            timeout=ANSWER_SECONDS,
            limits=limits,
            trust_env=False,  # proxies are for other machines
        ) as client:
            yield client


async def send_load(
    service: Endpoint, conversations: Sequence[RequestChain], load: Load, *, seed: int
) -> tuple[float, list[Served]]:
    """Has every conversation when it is due; returns the seconds until the last answer, and each request's fate.

    In an open loop a conversation's clock starts when it is due, however late it could be sent: waiting for a slow
    service counts. In a closed loop it starts when it is sent, and so do further turns, each as soon as the one before
    is answered. A turn that fails ends its conversation.
    """
    async with service.client(len(conversations)) as client:
        started = time.monotonic()
        if load.due is None:
            served = await _closed_loop(client, conversations, load.concurrency)
        else:
            due = [started + offset for offset in load.due(len(conversations), seed)]
            numbered = zip(range(len(due)), conversations, due, strict=True)
            served = await asyncio.gather(*(_when_due(client, *one) for one in numbered))
        return time.monotonic() - started, [turn for turns in served for turn in turns]


async def _closed_loop(
    client: httpx.AsyncClient, conversations: Sequence[RequestChain], concurrency: int
) -> list[list[Served]]:
    results: list[list[Served]] = [[] for _ in conversations]
    waiting = iter(enumerate(conversations))

    async def work() -> None:
        for number, conversation in waiting:  # shared: each worker takes the next one
            results[number] = await _converse(client, number, conversation, time.monotonic())

    await asyncio.gather(*(work() for _ in range(concurrency)))
    return results


async def _when_due(client: httpx.AsyncClient, number: int, conversation: RequestChain, due: float) -> list[Served]:
    await asyncio.sleep(max(0.0, due - time.monotonic()))
    return await _converse(client, number, conversation, due)


async def _converse(client: httpx.AsyncClient, number: int, conversation: RequestChain, due: float) -> list[Served]:
    served: list[Served] = []
    for turn in range(conversation.num_turns):
        body = conversation.body([one.token_ids for one in served])
        reading = await _ask(client, body, time.monotonic() if turn else due)
        served.append(reading.served(number, turn))
        if served[-1].error is not None:
            break
    return served


async def _ask(client: httpx.AsyncClient, body: Body, due: float) -> _Reading:
    reading = _Reading(due)
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                await response.aread()
                reading.error = f"the service answered {response.status_code}: {response.text[:300]}"
                return reading
            response.headers.setdefault("Content-Type", "text/event-stream")  # some services name none
            # Not the response's own lines: those end at U+2028 too, which may stand in an answer.
            async for event in EventSource(response).aiter_sse():
                reading.take(event.data, time.monotonic())
    except (httpx.HTTPError, ValueError) as error:
        reading.error = f"{type(error).__name__}: {error}"
    return reading
