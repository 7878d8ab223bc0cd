"""Knows how the service is put on a port."""

from __future__ import annotations

import errno
import ipaddress
import json
import socket
import sys

import uvicorn

from paceline.core.errors import ConfigError
from paceline.core.service_config import Limits
from paceline.server.app import create_app
from paceline.server.engine_client import EngineClient
from paceline.server.service import served_name

DRAIN_SECONDS = 30


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


def serve(engine: EngineClient, host: str = "127.0.0.1", port: int = 8000, *, limits: Limits | None = None) -> None:
    """Serves until interrupted; then lets calls in progress end, for at most ``DRAIN_SECONDS``.

    Prints the URL and a curl line once the port listens.

    Raises:
        ConfigError: as ``listen``.
    """
    listener = listen(host, port)
    app = create_app(engine, limits=limits)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    _announce(engine, host, listener.getsockname()[1])
    uvicorn.Server(config).run(sockets=[listener])


def _announce(engine: EngineClient, host: str, port: int) -> None:
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    body = json.dumps({"message": "Hello"})
    print(f"Paceline serves {served_name(engine.model_name)} at {url} (context {engine.max_model_len} tokens)")
    print(f"Try: curl {url}/chat -H 'Content-Type: application/json' -d '{body}'", flush=True)
    if not _is_loopback(host):
        print("Warning: anybody who reaches this address can use the model; there is no key.", file=sys.stderr)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
