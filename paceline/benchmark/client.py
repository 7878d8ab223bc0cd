"""Asks a service for completions by token ids and notes when every chunk of an answer came; any OpenAI-like stream."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from paceline.benchmark.arrivals import Load
from paceline.benchmark.tokens import TokenTimes

Body = Mapping[str, Any]
ANSWER_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Served:
    """One request's fate."""

    times: TokenTimes
    """From when it was due; the tokens of a chunk share the time at which the chunk came."""
    num_prompt_tokens: int = 0
    """As the service counts them."""
    error: str | None = None
    drafted: int = 0
    accepted: int = 0


@dataclass(slots=True)
class _Reading:
    """What a stream has said so far."""

    due: float
    times: list[float] = field(default_factory=list)
    num_prompt_tokens: int = 0
    error: str | None = None
    done: bool = False
    drafted: int = 0
    accepted: int = 0

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
        self.drafted = extra.get("drafted_tokens", self.drafted)
        self.accepted = extra.get("accepted_tokens", self.accepted)
        if chunk.get("usage"):
            self.num_prompt_tokens = chunk["usage"]["prompt_tokens"]

    def served(self) -> Served:
        error = self.error or (None if self.done else "the stream ended without its last event")
        times = TokenTimes(self.due, self.times)
        return Served(times, self.num_prompt_tokens, error, self.drafted, self.accepted)


@dataclass(frozen=True, slots=True)
class Service:
    """Where requests go."""

    url: str
    headers: Mapping[str, str]
    """Such as an API key."""

    @asynccontextmanager
    async def client(self, connections: int) -> AsyncIterator[httpx.AsyncClient]:
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        async with httpx.AsyncClient(
            base_url=self.url,
            headers=dict(self.headers),
            timeout=ANSWER_SECONDS,
            limits=limits,
            trust_env=False,  # proxies are for other machines
        ) as client:
            yield client


async def send_load(service: Service, bodies: Sequence[Body], load: Load, *, seed: int) -> tuple[float, list[Served]]:
    """Sends every body when it is due; returns the seconds until the last was answered, and each one's fate.

    In an open loop a request's clock starts when it is due, however late it could be sent: waiting for a slow
    service counts. In a closed loop it starts when it is sent.
    """
    async with service.client(len(bodies)) as client:
        started = time.monotonic()
        if load.due is None:
            served = await _closed_loop(client, bodies, load.concurrency)
        else:
            due = [started + offset for offset in load.due(len(bodies), seed)]
            served = await asyncio.gather(*(_when_due(client, *one) for one in zip(bodies, due, strict=True)))
        return time.monotonic() - started, list(served)


async def _closed_loop(client: httpx.AsyncClient, bodies: Sequence[Body], concurrency: int) -> list[Served]:
    results: list[Served | None] = [None] * len(bodies)
    waiting = iter(enumerate(bodies))

    async def work() -> None:
        for place, body in waiting:  # shared: each worker takes the next one
            results[place] = await _ask(client, body, time.monotonic())

    await asyncio.gather(*(work() for _ in range(concurrency)))
    return [one for one in results if one is not None]


async def _when_due(client: httpx.AsyncClient, body: Body, due: float) -> Served:
    await asyncio.sleep(max(0.0, due - time.monotonic()))
    return await _ask(client, body, due)


async def _ask(client: httpx.AsyncClient, body: Body, due: float) -> Served:
    reading = _Reading(due)
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                await response.aread()
                reading.error = f"the service answered {response.status_code}: {response.text[:300]}"
                return reading.served()
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    reading.take(line.removeprefix("data: "), time.monotonic())
    except (httpx.HTTPError, ValueError) as error:
        reading.error = f"{type(error).__name__}: {error}"
    return reading.served()
