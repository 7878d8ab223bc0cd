"""Knows how several asynchronous streams become one; nothing of what they carry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

Item = TypeVar("Item")
Arrivals = asyncio.Queue[tuple[int, Item | Exception | None]]


async def merge(streams: Sequence[AsyncGenerator[Item]]) -> AsyncGenerator[tuple[int, Item]]:
    """Items as they come, each with its stream's number. Leaving early closes all streams, and so does an error.

    A stream's next item is asked for once its last one was put in a queue as long as there are streams, so a slow
    reader slows them all down.
    """
    arrivals: Arrivals[Item] = asyncio.Queue(len(streams))
    tasks = [asyncio.ensure_future(_forward(number, stream, arrivals)) for number, stream in enumerate(streams)]
    num_open = len(streams)
    try:
        while num_open:
            number, item = await arrivals.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield number, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # A task that was cancelled before it ever ran has not closed its stream.
        for stream in streams:
            await stream.aclose()


async def _forward(number: int, stream: AsyncGenerator[Item], arrivals: Arrivals[Item]) -> None:
    try:
        async with aclosing(stream):
            async for item in stream:
                await arrivals.put((number, item))
    except Exception as error:
        await arrivals.put((number, error))
    else:
        await arrivals.put((number, None))


async def begin(stream: AsyncGenerator[Item]) -> AsyncGenerator[Item]:
    """The stream once its first item has come: what fails at once fails here."""
    try:
        first = await anext(stream)
    except BaseException:
        await stream.aclose()
        raise
    return _chain(first, stream)


async def _chain(first: Item, rest: AsyncGenerator[Item]) -> AsyncGenerator[Item]:
    async with aclosing(rest):
        yield first
        async for item in rest:
            yield item
