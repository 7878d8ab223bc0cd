"""Knows how frames travel over a socket: each is its length, in four bytes, and its content. Not what they mean."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

from paceline.core.errors import PacelineError

MAX_FRAME_BYTES = 64 * 2**20
_HEADER = struct.Struct(">I")
_PIECE = 2**18


class LinkError(PacelineError):
    """What came over the link makes no sense, so nothing that follows can be trusted."""


class FrameTooLargeError(PacelineError):
    """A frame that the other side would refuse."""


def framed(content: bytes) -> bytes:
    """Raises FrameTooLargeError if ``content`` has more than ``MAX_FRAME_BYTES``."""
    if len(content) > MAX_FRAME_BYTES:
        raise FrameTooLargeError(f"a frame of {len(content)} bytes is larger than the {MAX_FRAME_BYTES} allowed")
    return _HEADER.pack(len(content)) + content


def _nothing() -> None:
    pass


class Link:
    """One end of a connected socket. Any thread may send, one receives; neither can hold up the other."""

    def __init__(self, end: socket.socket, *, drained: Callable[[], None] = _nothing) -> None:
        end.setblocking(False)
        self._socket, self._drained = end, drained
        self._lock = threading.Lock()
        self._unsent = bytearray()
        self._received = bytearray()
        self._readable = select.poll()
        self._readable.register(end, select.POLLIN)

    @property
    def full(self) -> bool:
        """Whether the other side is so slow that something waits here to be sent."""
        return bool(self._unsent)

    def send(self, frames: bytes) -> None:
        """Sends whole frames, or keeps what the socket does not take and sends it from a thread; never waits.

        If the other side is gone they are lost: ``receive`` tells.
        """
        with self._lock:
            waiting = bool(self._unsent)
            self._unsent += frames[0 if waiting else self._write(frames) :]
            if self._unsent and not waiting:
                threading.Thread(target=self._drain, name="paceline-link", daemon=True).start()

    def _write(self, data: bytes | bytearray) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)

    def _drain(self) -> None:
        writable = select.poll()
        writable.register(self._socket, select.POLLOUT)
        while self._unsent:
            writable.poll()
            with self._lock:
                del self._unsent[: self._write(self._unsent)]
        self._drained()

    def receive(self, timeout: float | None = None) -> list[bytes]:
        """The contents of at least one frame, or none after ``timeout`` seconds.

        Raises:
            EOFError: the other side is gone.
            LinkError: a frame larger than allowed.
        """
        while True:
            frames = self._whole_frames()
            if frames or not self._readable.poll(None if timeout is None else timeout * 1000):
                return frames
            try:
                piece = self._socket.recv(_PIECE)
            except BlockingIOError:
                continue
            except OSError:
                piece = b""
            if not piece:
                raise EOFError
            self._received += piece

    def _whole_frames(self) -> list[bytes]:
        frames: list[bytes] = []
        start, size = 0, len(self._received)
        while size - start >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._received, start)
            if length > MAX_FRAME_BYTES:
                raise LinkError(f"a frame of {length} bytes was announced, {MAX_FRAME_BYTES} are allowed")
            end = start + _HEADER.size + length
            if end > size:
                break
            frames.append(bytes(self._received[start + _HEADER.size : end]))
            start = end
        del self._received[:start]
        return frames

    def hang_up(self) -> None:
        """Ends the link from any thread: both sides' ``receive`` raises EOFError."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Gives back the socket; for the thread that receives, once that is over."""
        self.hang_up()
        with self._lock:
            self._unsent.clear()
        self._socket.close()
