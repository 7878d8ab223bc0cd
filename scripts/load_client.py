"""Knows how to put load on a running service and to time every token; nothing of what the times say."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from paceline.benchmark.tokens import TokenTimes

LINE_BYTES = 2**20


class RefusedError(Exception):
    """The service answered with an error; the text is its status or code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked, and how fast. Exactly one of ``clients`` and ``rate`` is set."""

    prompts: Sequence[str]
    """Asked in turn."""
    num_requests: int
    clients: int | None = None
    """Closed loop: so many clients, each asking again as soon as it was answered."""
    rate: float | None = None
    """Open loop: requests per second, with the exponential gaps of a Poisson process."""
    max_tokens: int = 64
    temperature: float = 0.0
    speculation: bool = True
    seed: int = 0
    timeout: float = 120.0
    """Seconds that one request may take."""

    def body(self, number: int) -> dict[str, Any]:
        """The request of this number; whoever sends it, it is the same."""
        return {
            "message": self.prompts[number % len(self.prompts)],
            "stream": True,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed + number,
            "speculation": self.speculation,
            "ignore_eos": True,
        }

    def arrivals(self) -> list[float]:
        """Open loop: seconds from the start at which requests are due."""
        source = random.Random(self.seed)
        gaps = (source.expovariate(self.rate or 1.0) for _ in range(self.num_requests))
        return list(itertools.accumulate(gaps))


@dataclass(slots=True)
class Sample:
    """One request: when its tokens came, or why it failed. Times are of ``time.perf_counter``."""

    due: float
    times: list[float] = field(default_factory=list)
    end: float = 0.0
    error: str | None = None

    @property
    def tokens(self) -> TokenTimes:
        return TokenTimes(self.due, self.times)


async def put(load: Load, url: str, key: str | None = None) -> tuple[list[Sample], float]:
    """Runs the load; returns the samples in the order of their numbers, and the seconds from start to end."""
    start = time.perf_counter()
    if load.rate is None:
        samples = await _closed(load, url, key)
    else:
        samples = await asyncio.gather(
            *(_due(load, url, key, number, start + at) for number, at in enumerate(load.arrivals()))
        )
    return samples, time.perf_counter() - start


async def _closed(load: Load, url: str, key: str | None) -> list[Sample]:
    samples: dict[int, Sample] = {}
    numbers = iter(range(load.num_requests))

    async def client(numbers: Iterator[int]) -> None:
        for number in numbers:
            samples[number] = await _ask(load, url, key, number, time.perf_counter())

    await asyncio.gather(*(client(numbers) for _ in range(load.clients or 1)))
    return [samples[number] for number in range(load.num_requests)]


async def _due(load: Load, url: str, key: str | None, number: int, at: float) -> Sample:
    """A request that is late because this process was busy still counts from when it was due."""
    await asyncio.sleep(max(0.0, at - time.perf_counter()))
    return await _ask(load, url, key, number, at)


async def _ask(load: Load, url: str, key: str | None, number: int, due: float) -> Sample:
    sample = Sample(due)
    try:
        async with asyncio.timeout(load.timeout):
            async for num_tokens in _stream(url, key, load.body(number)):
                sample.times += [time.perf_counter()] * num_tokens
    except TimeoutError:
        sample.error = "timeout"
    except RefusedError as error:
        sample.error = str(error)
    except (OSError, ValueError, KeyError) as error:
        sample.error = type(error).__name__
    sample.end = time.perf_counter()
    return sample


async def _stream(url: str, key: str | None, body: dict[str, Any]) -> AsyncIterator[int]:
    """The number of tokens of each event of ``POST /chat``.

    Over a bare socket, as the work of a client would be measured too. Every event is a line of the body; the lines
    between, sizes of chunks, are of no interest.
    """
    place, payload = urlsplit(url), json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(place.hostname, place.port or 80, limit=LINE_BYTES)
    try:
        lines = ["POST /chat HTTP/1.1", f"Host: {place.netloc}", "Content-Type: application/json", "Connection: close"]
        lines += [f"Content-Length: {len(payload)}", *([f"Authorization: Bearer {key}"] if key else [])]
        writer.write("\r\n".join([*lines, "", ""]).encode() + payload)
        await writer.drain()
        status = (await reader.readline()).split()
        if len(status) < 2 or status[1] != b"200":
            raise RefusedError(status[1].decode() if len(status) > 1 else "closed")
        ended = False
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                event = json.loads(line[len(b"data: ") :])
                if "error" in event:
                    raise RefusedError(event["error"].get("code") or "error")
                ended = ended or "metrics" in event
                yield len(event["tokens"])
        if not ended:
            raise RefusedError("cut off")
    finally:
        writer.close()
