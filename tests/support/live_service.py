"""The service on a real port, in a thread of this process: for what only sockets show."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from paceline.core.service_config import Limits, ServiceConfig
from paceline.server.run import listen, make_server
from tests.support.http_calls import HELLO

PATIENCE = 20.0
"""Seconds after which something that should happen at once is taken for never."""


@dataclass
class Reply:
    """What came back on a socket."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self):
        error = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


@dataclass
class Live:
    engine: object
    port: int
    server: Any
    keys: tuple[str, ...] = ()
    sockets: list[socket.socket] = field(default_factory=list)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def connect(self, data: bytes = b"", *, receive_buffer: int | None = None) -> socket.socket:
        connection = socket.socket()
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(PATIENCE)
        connection.connect(("127.0.0.1", self.port))
        self.sockets.append(connection)
        connection.sendall(data)
        return connection

    def exchange(self, data: bytes) -> Reply:
        """Sends bytes as they are and reads the answer to its end."""
        with self.connect(data) as connection:
            return read_reply(connection)

    def good(self) -> None:
        """A good request is served, and nothing of earlier ones is left."""
        headers = {"Authorization": f"Bearer {self.keys[0]}"} if self.keys else {}
        body = {"model": served(self.engine), "messages": HELLO, "max_tokens": 1}
        with httpx.Client(base_url=self.url, trust_env=False, timeout=PATIENCE) as client:
            answer = client.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        self.idle()

    def idle(self) -> None:
        """No call in progress, and every page is free or cached."""
        eventually(lambda: self.server.service.admission.num_active == 0)
        eventually(lambda: is_idle(self.engine))


def served(engine):
    return engine.model_name.rpartition("/")[2]


def is_idle(engine):
    if hasattr(engine, "running"):
        return not engine.running
    stats = engine.stats()
    pages = stats["pages"]
    assert pages["free"] + pages["cached"] + pages["referenced"] == pages["total"]
    return pages["referenced"] == stats["num_requests_running"] == stats["num_requests_waiting"] == 0


def eventually(condition, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


def read_reply(connection: socket.socket) -> Reply:
    """One answer: by its Content-Length, else until the server closes."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        assert more, f"closed without an answer: {data!r}"
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    length = headers.get("content-length")
    while length is None or len(body) < int(length):
        more = connection.recv(65536)
        if not more:
            break
        body += more
    return Reply(int(first.split()[1]), headers, body)


def drip(connection: socket.socket) -> None:
    """Sends a byte now and then, for as long as the server takes them."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        connection.sendall(b"X")
        time.sleep(0.05)


def closed(connection: socket.socket) -> bool:
    """The server ends the connection within ``PATIENCE``, whatever it sends before."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        pass
    return True


def post(body: bytes, *, path="/v1/chat/completions", headers=(), length: int | None = None) -> bytes:
    """A request as it goes over the wire; ``length`` may promise more than there is."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body) if length is None else length}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def call_body(engine, **more) -> bytes:
    return json.dumps({"model": served(engine), "messages": HELLO} | more).encode()


@contextmanager
def live(engine, *, limits: Limits | None = None, config: ServiceConfig | None = None, send_buffer: int | None = None):
    config = config or ServiceConfig()
    server = make_server(engine, config, limits or Limits())
    listener = listen("127.0.0.1", 0)
    if send_buffer is not None:  # connections inherit it; the usual one holds megabytes that nobody reads
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    service = Live(engine, listener.getsockname()[1], server, config.api_key)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield service
        assert thread.is_alive() or server._signalled is not None
    finally:
        for connection in service.sockets:
            connection.close()
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()
