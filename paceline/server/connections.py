"""Knows how long a connection may make the server wait, and how refusals before HTTP look; nothing of requests."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from paceline.core.service_config import Limits
from paceline.server.errors import ApiError, payload

_REASONS = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}
_BUSY = ApiError(503, "too many connections are open", code="overloaded")


class Connection(H11Protocol):
    """uvicorn's protocol with bounds on what a client may leave undone: headers, bodies, reading its answer."""

    def __init__(self, *args: Any, limits: Limits, **more: Any) -> None:
        super().__init__(*args, **more)
        self._limits = limits
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            transport.write(_raw(503, "Service Unavailable", _BUSY, "Retry-After: 1\r\n"))
            transport.close()
        else:
            self._expect(self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        self._stop_write_timer()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        if self.transport.is_closing():
            return
        super().handle_events()
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def _watch(self) -> None:
        """Begins and ends the wait for the rest of a request. What was half sent is not given more time by more."""
        them = self.conn.their_state
        if them is h11.IDLE and self.conn.trailing_data[0]:
            self._expect(self._give_up)
        elif them is h11.SEND_BODY and self.cycle.response_complete:
            # Refused before its body was read; cutting it off at once could lose the answer on its way.
            self._expect(self.transport.abort)
        elif them is not h11.IDLE or self.cycle is not None:
            self._expect_nothing()

    def _expect(self, otherwise: Callable[[], object]) -> None:
        if self._read_timer is None:
            self._read_timer = self.loop.call_later(self._limits.header_seconds, otherwise)

    def _give_up(self) -> None:
        if self.conn.trailing_data[0]:
            self._refuse(408, ApiError(408, f"the headers did not come within {self._limits.header_seconds:g} s"))
        else:
            self.transport.close()

    def _expect_nothing(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def pause_writing(self) -> None:
        super().pause_writing()
        # Also frees a connection that is closing and waits for its client to take the last bytes.
        self._write_timer = self.loop.call_later(self._limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_write_timer()
        super().resume_writing()

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 (uvicorn's signature)
        """Called where h11 cannot make sense of what came."""
        error = sys.exc_info()[1]
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        status = status if status in _REASONS else 400
        self._refuse(status, ApiError(status, "this is not an HTTP request that the server takes"))

    def _refuse(self, status: int, error: ApiError) -> None:
        # Once an answer has begun, another one inside it would only confuse.
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            self.transport.write(_raw(status, _REASONS[status], error))
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """The request is served as if it had not asked; a line in the log for each would be a way to fill disks."""


def _raw(status: int, reason: str, error: ApiError, headers: str = "") -> bytes:
    body = json.dumps(payload(error)).encode()
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}"
    return f"{head}Connection: close\r\n\r\n".encode() + body


def protocol(limits: Limits) -> type[asyncio.Protocol]:
    """What uvicorn makes connections with."""
    return cast(type[asyncio.Protocol], partial(Connection, limits=limits))
