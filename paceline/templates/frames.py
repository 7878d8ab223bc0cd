"""Knows how messages lie on a socket: a length of eight bytes, then JSON."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

_LENGTH = 8


def send(end: socket.socket, message: object) -> None:
    data = json.dumps(message).encode()
    end.sendall(len(data).to_bytes(_LENGTH, "little") + data)


def receive(end: socket.socket, seconds: float | None = None) -> Any:
    """The next message.

    Raises:
        TimeoutError: it is not whole within ``seconds``.
        EOFError: the other end was closed.
    """
    until = None if seconds is None else time.monotonic() + seconds
    length = int.from_bytes(_exactly(end, _LENGTH, until), "little")
    return json.loads(_exactly(end, length, until))


def _exactly(end: socket.socket, length: int, until: float | None) -> bytes:
    kept = bytearray()
    while len(kept) < length:
        if until is not None:
            end.settimeout(max(until - time.monotonic(), 1e-6))
        part = end.recv(min(length - len(kept), 2**20))
        if not part:
            raise EOFError
        kept += part
    return bytes(kept)
