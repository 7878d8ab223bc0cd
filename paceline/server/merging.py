"""Knows how several asynchronous streams become one; nothing of what they carry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from paceline.core.panics import is_panic

Item = TypeVar("Item")
Arrivals = asyncio.Queue[tuple[int, Item | BaseException | None]]


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
            if isinstance(item, BaseException):
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
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        await arrivals.put((number, error))
    else:
        await arrivals.put((number, None))


async def begin(stream: AsyncGenerator[Item], seconds: float) -> AsyncGenerator[Item]:
    """The stream once its first item has come, or has not come for ``seconds``: what fails at once fails here."""
    first = asyncio.ensure_future(anext(stream))
    begun = _Begun(first, stream)
    try:
        await asyncio.wait({first}, timeout=seconds)
        if first.done():
            first.result()
    except BaseException:
        await begun.aclose()
        raise
    return begun


class _Begun(AsyncGenerator[Item]):
    """A stream with its first item put back, or still on its way. Closing it closes the stream even if nothing was
    taken: a generator function's body would not have begun then, and hence not end."""

    def __init__(self, first: asyncio.Future[Item], rest: AsyncGenerator[Item]) -> None:
        self._first, self._rest = [first], rest

    async def asend(self, value: None) -> Item:
        return await (self._first.pop() if self._first else self._rest.asend(value))

    async def athrow(self, *error: Any) -> Item:
        return await self._rest.athrow(*error)

    async def aclose(self) -> None:
        for first in self._first:
            first.cancel()
        await asyncio.gather(*self._first, return_exceptions=True)
        self._first.clear()
        await self._rest.aclose()
