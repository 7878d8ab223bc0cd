"""Knows how to run the real service as a process of its own on this machine, and to stop it whatever happens."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import IO, TYPE_CHECKING

from paceline.cli.signals import terminable
from paceline.core.errors import ConfigError, PacelineError

if TYPE_CHECKING:
    import httpx

HOST = "127.0.0.1"
START_SECONDS = 300.0
STOP_SECONDS = 10.0


class ServiceError(PacelineError):
    """The service did not start, or did not answer as it should."""


@contextmanager
def running_service(arguments: Sequence[str]) -> Iterator[httpx.Client]:
    """Starts ``paceline serve`` with the arguments, waits until it is healthy, and gives a client for it.

    Raises:
        ServiceError: it ended or stayed unhealthy; the message is the service's own.
    """
    httpx = _httpx()
    port, key = free_port(), secrets.token_urlsafe()
    command = [sys.executable, "-m", "paceline.cli.main", "serve", *arguments, "--host", HOST, "--port", str(port)]
    with tempfile.TemporaryFile() as log, terminable():
        # In a session of its own, Ctrl-C reaches this process only, which then stops the service in order.
        process = subprocess.Popen(  # noqa: S603 (our own interpreter and arguments)
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"PACELINE_API_KEY": key},  # whatever keys a settings file names
        )
        try:
            header = {"Authorization": f"Bearer {key}"}
            # Proxies are for other machines.
            with httpx.Client(base_url=f"http://{HOST}:{port}", headers=header, timeout=60, trust_env=False) as client:
                _wait_healthy(client, process, log)
                yield client
        finally:
            _stop(process)


def _httpx() -> ModuleType:
    try:
        import httpx
    except ModuleNotFoundError as error:
        raise ConfigError("the demo needs httpx\nInstall it: pip install 'paceline[serve]'") from error
    return httpx


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_healthy(client: httpx.Client, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServiceError(_cause(log, process.returncode))
        try:
            if client.get("/health").status_code == 200:
                return
        except _httpx().TransportError:
            pass
        time.sleep(0.1)
    raise ServiceError(f"the service is not healthy after {START_SECONDS:.0f} s\nTry it alone: paceline serve")


def _cause(log: IO[bytes], code: int) -> str:
    """What the service said last: its error and the line after it, or the end of its output."""
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if line.startswith("error: "):
            return "\n".join([line.removeprefix("error: "), *lines[number + 1 : number + 2]])
    return "\n".join([f"the service ended with code {code}", *lines[-5:]])


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
