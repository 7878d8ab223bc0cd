"""Knows server-sent events: one JSON object per event, errors included."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from paceline.core.panics import is_panic
from paceline.server.disconnect import unless_disconnected
from paceline.server.errors import as_api_error, payload
from paceline.server.reception import visit_of

DONE = b"data: [DONE]\n\n"
SILENT_SECONDS = 10.0
"""After as long without an event a comment goes out, so that neither client nor proxy takes the connection for dead."""
COMMENT = b": waiting\n\n"
"""Readers of event streams skip lines that begin with a colon."""


_LINE_ENDS = str.maketrans({mark: f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"})
"""Beside the control characters, which JSON escapes anyway, these end a line for Unicode and Python's splitlines, and
so for many clients; the standard of event streams knows only CR and LF."""


def event(data: Mapping[str, Any]) -> bytes:
    written = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return b"data: " + written.translate(_LINE_ENDS).encode() + b"\n\n"


class EventStream(Response):
    """Sends events as they come. Closes their generator and what they are made of, whatever happens: the end, an error,
    a client that left before the first of them.

    An error becomes a last event ``{"error": ...}``, so that a client does not take it for a clean end. The headers do
    not wait for the first event, and silence is broken by comments.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], *, source: AsyncGenerator[Any], write_seconds: float) -> None:
        self._events, self._source, self._write_seconds = events, source, write_seconds
        self._written = 0.0
        """time.monotonic() when something was last sent."""
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_disconnected(receive, self._send_all(send, visit_of(scope).id))
        except ClientDisconnect:
            return
        finally:
            await self._events.aclose()
            await self._source.aclose()

    async def _send_all(self, send: Send, request_id: str) -> None:
        await self._write(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        comments = asyncio.ensure_future(self._break_silence(send))
        try:
            async for chunk in self._events:
                await self._write(send, {"type": "http.response.body", "body": chunk, "more_body": True})
        except ClientDisconnect:
            raise
        except BaseException as error:
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            await self._source.aclose()  # no work goes on while its client hears of the end
            last = event(payload(as_api_error(error, request_id)))
            await self._write(send, {"type": "http.response.body", "body": last, "more_body": True})
        finally:
            comments.cancel()
            await asyncio.gather(comments, return_exceptions=True)
        await self._write(send, {"type": "http.response.body", "body": b"", "more_body": False})

    async def _break_silence(self, send: Send) -> None:
        while True:
            await asyncio.sleep(self._written + SILENT_SECONDS - time.monotonic())
            if time.monotonic() - self._written >= SILENT_SECONDS:
                await self._write(send, {"type": "http.response.body", "body": COMMENT, "more_body": True})

    async def _write(self, send: Send, message: Message) -> None:
        """Raises ClientDisconnect if the client takes nothing or is gone: other errors are not its doing."""
        self._written = time.monotonic()
        try:
            # Not wait_for, which in Python 3.11 loses a cancellation that comes as the message is sent.
            async with asyncio.timeout(self._write_seconds):
                await send(message)
        except (TimeoutError, OSError):
            raise ClientDisconnect from None
