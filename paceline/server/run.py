"""Knows how the service is put on a port."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import FrameType
from typing import Self

import uvicorn
from starlette.types import ASGIApp

from paceline.core.errors import ConfigError
from paceline.core.service_config import Limits, ServiceConfig
from paceline.server import logs
from paceline.server.app import ExchangeableApp, create_app, create_loading_app
from paceline.server.connections import protocol
from paceline.server.engine_client import EngineClient
from paceline.server.service import Service

log = logging.getLogger(__name__)
SPARE_DESCRIPTORS = 256
NEEDED_DESCRIPTORS = 40
"""What the service has open without any connection."""
END_SECONDS = 2.0
"""For calls that were ended by the service to tell their clients."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        ConfigError: the port is taken, naming a free one, or the address cannot be used.
    """
    if not 0 <= port <= 65535:  # The system would wrap it round.
        raise ConfigError(f"there is no port {port}\nUse --port with a number in [1, 65535].")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"the host {host!r} cannot be resolved ({error})\nUse --host 127.0.0.1.") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            why = "is in use" if error.errno == errno.EADDRINUSE else "may not be used by this user"
            raise ConfigError(f"port {port} {why}\nUse another one, for example --port {_free_port(host)}.") from None
        raise ConfigError(f"cannot listen on {host}:{port} ({error})\nCheck --host and --port.") from None
    return listener


def _free_port(host: str) -> int:
    with listen(host, 0) as listener:
        port: int = listener.getsockname()[1]
        return port


class Server(uvicorn.Server):
    """uvicorn's server, which goes on answering while calls in progress end."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.service: Service | None = None
        """None while the model is loaded: there is nothing to drain then."""
        self._signalled: float | None = None
        """When the service was asked to end."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 (uvicorn's signature)
        """The first signal drains, a second one ends at once. Nothing is raised again: this is an orderly end."""
        if self._signalled is None and self.service is not None:
            self.service.admission.draining = True
            self._signalled = time.monotonic()
        else:
            self.should_exit = self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        if self._signalled is not None and self.service is not None:
            waited = time.monotonic() - self._signalled
            late = waited - self.service.limits.drain_seconds
            if late >= 0:
                self.service.abort_all()
            if self.service.admission.num_active == 0 or late >= END_SECONDS:
                self.should_exit = True
        return await super().on_tick(counter)


class OpenPort:
    """A port that listens from now on: who comes gets 503 until ``serve`` is given an engine. Used with ``with``.

    Raises:
        ConfigError: as ``listen``, or a key file that cannot be used.
    """

    def __init__(self, config: ServiceConfig, limits: Limits) -> None:
        logs.configure(logging.getLevelNamesMapping()[config.log_level.upper()])
        self._config, self._limits = config, limits
        self._entrance = ExchangeableApp(create_loading_app(limits, config))
        self._listener = listen(config.host, config.port)
        self._server = Server(_settings(self._entrance, limits))
        self._failure: BaseException | None = None
        # Beside the main thread, which reads the model meanwhile and is the one that signals interrupt.
        self._thread = threading.Thread(target=self._run, name="paceline-http", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(END_SECONDS)
        self._listener.close()

    def serve(self, engine: EngineClient, *, listening: Callable[[int], None] | None = None) -> None:
        """Serves until SIGTERM or SIGINT; as the function ``serve``."""
        app = create_app(engine, limits=self._limits, config=self._config)
        self._server.service = app.state.service
        self._entrance.app = app
        with _handled(self._server.handle_exit):
            if listening is not None:
                listening(self._listener.getsockname()[1])
            while self._thread.is_alive():
                self._thread.join(0.5)
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._listener])
        except BaseException as error:
            self._failure = error


def serve(
    engine: EngineClient,
    config: ServiceConfig | None = None,
    *,
    limits: Limits | None = None,
    listening: Callable[[int], None] | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT; then lets calls in progress end, for at most ``drain_seconds``.

    Args:
        listening: called with the port once it listens.

    Raises:
        ConfigError: as ``OpenPort``.
    """
    with OpenPort(config or ServiceConfig(), limits or Limits()) as port:
        port.serve(engine, listening=listening)


def make_server(engine: EngineClient, config: ServiceConfig, limits: Limits) -> Server:
    """A server that is not yet running; its ``run`` takes the listening sockets."""
    app = create_app(engine, limits=limits, config=config)
    server = Server(_settings(app, limits))
    server.service = app.state.service
    return server


def _settings(app: ASGIApp, limits: Limits) -> uvicorn.Config:
    limits = replace(limits, max_connections=_allow_descriptors(limits.max_connections))
    return uvicorn.Config(
        app,
        http=protocol(limits),
        ws="none",
        lifespan="off",
        # asyncio accepts as many at a time, each of which needs a descriptor before it can be refused.
        backlog=min(2048, max(8, limits.max_connections)),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=limits.keep_alive_seconds,  # type: ignore[arg-type]
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=limits.max_header_bytes,
    )


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """SIGINT and SIGTERM go to ``handler``, where this is the thread that may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _allow_descriptors(num_connections: int) -> int:
    """The usual 1,024 open files would be fewer than the connections that are allowed; returns how many can be."""
    with suppress(ImportError, ValueError, OSError):
        import resource  # noqa: PLC0415 (not on every system)

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = num_connections + SPARE_DESCRIPTORS
        if soft != resource.RLIM_INFINITY and soft < wanted:
            soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft != resource.RLIM_INFINITY and soft < wanted:
            # Half of what is left, since those that are refused need a descriptor as well.
            fewer = max(1, (soft - NEEDED_DESCRIPTORS) // 2)
            log.warning("only %d files may be open, so %d connections (ulimit -n raises it)", soft, fewer)
            return min(num_connections, fewer)
    return num_connections
