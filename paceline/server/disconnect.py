"""Knows how to stop working for a client that went away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

Result = TypeVar("Result")


async def _listen(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Awaits ``work``, and cancels it as soon as the client goes away. The request's body must have been read.

    Raises:
        ClientDisconnect: the client went away first.
    """
    task = asyncio.ensure_future(work)
    listener = asyncio.ensure_future(_listen(receive))
    try:
        await asyncio.wait({task, listener}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        # Also when this coroutine is cancelled itself; waiting lets the work give back what it holds.
        for other in (task, listener):
            other.cancel()
        await asyncio.gather(task, listener, return_exceptions=True)
