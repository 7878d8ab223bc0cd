"""Knows who gets in: Host names, API keys, web origins; nothing of what lies behind."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from paceline.core.errors import ConfigError
from paceline.core.service_config import ServiceConfig
from paceline.server.errors import ApiError, response_to
from paceline.server.reception import IGNORED_FIELDS, visit_of

PUBLIC_PATHS = frozenset({"/health", "/ready"})
"""Answer without a key. Compared as a whole, so that no prefix, slash or encoding opens another path."""
METRICS_PATH = "/metrics"
_KEY = re.compile(r"[\x21-\x7e]{1,512}")
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,251}[a-z0-9])?")
MOST_TOLD = 16
log = logging.getLogger(__name__)
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")


class KeyRing:
    """Keys as keyed digests, which have one length and are compared in constant time.

    Raises:
        ConfigError: no key, or one that could not be sent in a header; the message does not show it.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._secret = secrets.token_bytes(32)
        keys = tuple(keys)
        if not keys or not all(_KEY.fullmatch(key) for key in keys):
            raise ConfigError("an API key must be 1 to 512 visible ASCII characters\nCheck --api-key, --api-key-file.")
        self._digests = tuple(self._digest(key.encode()) for key in keys)

    @classmethod
    def of(cls, config: ServiceConfig) -> KeyRing | None:
        """The config's keys; None where it names none.

        Raises:
            ConfigError: also if the file cannot be read or holds no key.
        """
        if not config.has_keys:
            return None
        return cls([*config.api_key, *(_keys_in(config.api_key_file) if config.api_key_file is not None else ())])

    def client_of(self, authorization: list[str]) -> str | None:
        """Who sent these Authorization headers: a digest of the key that says nothing of it; None without a key."""
        if len(authorization) != 1:
            return None
        scheme, _, key = authorization[0].partition(" ")
        presented = self._digest(key.strip().encode())
        # All are compared, so that the time does not tell which one was near.
        known = [hmac.compare_digest(presented, digest) for digest in self._digests]
        return presented[:32] if scheme.lower() == "bearer" and any(known) else None

    def _digest(self, key: bytes) -> str:
        return hmac.new(self._secret, key, hashlib.sha256).hexdigest()


def _keys_in(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"the key file {path} cannot be read\nCheck --api-key-file and its permissions.") from None
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise ConfigError(f"the key file {path} has no key\nWrite one key per line, or drop --api-key-file.")
    return keys


class KeyDoor:
    """401 for every path without a valid key, whether the path exists or not; some keys open the metrics alone."""

    def __init__(self, app: ASGIApp, keys: KeyRing | None, metrics_keys: KeyRing | None) -> None:
        self.app, self.keys, self.metrics_keys = app, keys, metrics_keys

    def _client_of(self, path: str, authorization: list[str]) -> str | None:
        rings = [self.keys, self.metrics_keys if path == METRICS_PATH else None]
        asked = [ring for ring in rings if ring is not None]
        if not asked:
            return ""  # only the metrics are locked
        return next((client for ring in asked if (client := ring.client_of(authorization)) is not None), None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PUBLIC_PATHS:
            path = scope["path"].rstrip("/")  # as the metrics are found behind this door
            client = self._client_of(path, Headers(scope=scope).getlist("authorization"))
            if client is None:
                await response_to(_no_key())(scope, receive, send)
                return
            visit_of(scope).client = client
        await self.app(scope, receive, send)


def _no_key() -> ApiError:
    why = "a valid API key is needed\nSend the header Authorization: Bearer KEY."
    return ApiError(401, why, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


class HostDoor:
    """403 for a Host that is not ours: a web page whose name was bound to this address cannot reach it."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str]) -> None:
        self.app, self.hosts = app, frozenset(host.lower() for host in hosts)
        self._told: set[str] = set()

    def _advice(self, given: list[str]) -> str:
        """The option that lets a name in; the log gets it too, once for each of a few names."""
        host = _without_port(given[0]) if len(given) == 1 else ""
        if not _NAME.fullmatch(host):
            return "Add the name to --allowed-hosts if it is this one's."
        advice = f"If it is this one's, start it with --allowed-hosts {host}"
        if host not in self._told and len(self._told) < MOST_TOLD:
            self._told.add(host)
            log.warning("a request for the host %s was refused. %s", host, advice)
        return advice

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = Headers(scope=scope).getlist("host")
            if len(given) != 1 or _without_port(given[0]) not in self.hosts:
                why = f"the Host header names another server\n{self._advice(given)}"
                await response_to(ApiError(403, why, code="host_not_allowed"))(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _without_port(host: str) -> str:
    """Also without the dot that ends a whole name."""
    return re.sub(r"(?<=[a-z0-9])\.?(:[0-9]*)?\Z|(?<=\]):[0-9]*\Z", "", host.lower())


def hosts_of(config: ServiceConfig) -> tuple[str, ...]:
    """The Host names that are let in; none where any is."""
    own = f"[{config.host}]" if ":" in config.host else config.host
    if not config.is_local:
        return config.allowed_hosts
    return (*_LOCAL_HOSTS, own, *config.allowed_hosts)


def install(app: FastAPI, config: ServiceConfig) -> None:
    """Puts the doors before an app, the first to be passed last.

    Raises:
        ConfigError: as ``KeyRing.of``.
    """
    keys, metrics_keys = KeyRing.of(config), KeyRing(config.metrics_key) if config.metrics_key else None
    if keys is not None or metrics_keys is not None:
        app.add_middleware(KeyDoor, keys, metrics_keys)
    if config.allowed_origins:
        # Outside the key door: a browser asks without a key whether it may send one. Cookies are never allowed.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.allowed_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            allow_private_network=True,  # a page that is named may be on a wider network than this machine
            expose_headers=["X-Request-Id", "Retry-After", IGNORED_FIELDS],
        )
    hosts = hosts_of(config)
    if hosts:
        app.add_middleware(HostDoor, hosts)
