"""Options of the service, resolved once and never changed; every field is a flag, a variable and a file key."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from paceline.core.errors import ConfigError
from paceline.core.settings import About, check_fields

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")

SWITCH = ("on", "off")
UNKNOWN = ("refuse", "warn", "ignore")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """Where the service listens, who may use it, and what it logs."""

    host: Annotated[str, About("Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, About("Port to listen on; 0 takes a free one.", low=0, high=65535)] = 8000
    api_key: Annotated[
        tuple[str, ...],
        About("A key that clients must send as Authorization: Bearer KEY; several may be given.", secret=True),
    ] = field(default=(), repr=False)
    api_key_file: Annotated[Path | None, About("File of further keys, one per line; # begins a comment.")] = None
    metrics_key: Annotated[
        tuple[str, ...], About("A key that opens /metrics and nothing else; several may be given.", secret=True)
    ] = field(default=(), repr=False)
    allow_unauthenticated: Annotated[bool, About("Listen beyond this machine without a key.")] = False
    allowed_hosts: Annotated[
        tuple[str, ...],
        About("Names that the Host header may have, beside this machine's own; any, if the bind is wider."),
    ] = ()
    allowed_origins: Annotated[
        tuple[str, ...], About("Web origins whose pages may call the service, such as https://example.org; * for all.")
    ] = ()
    in_process: Annotated[
        bool, About("Run the engine in the service's own process, where a crash ends both and is not recovered.")
    ] = False
    kill_seconds: Annotated[
        float,
        About("Seconds without progress after which a stuck engine is killed and started again; 0 never does.", low=0),
    ] = 600.0
    served_model_name: Annotated[
        tuple[str, ...],
        About("Names that clients may call the model by, the first of them in answers; several may be given."),
    ] = ()
    extras: Annotated[
        str, About("Whether answers of /v1 have their paceline object; a call's header decides first.", choices=SWITCH)
    ] = "on"
    unknown_fields: Annotated[
        str,
        About("What becomes of unknown fields of bodies: warn ignores and names them in a header.", choices=UNKNOWN),
    ] = "warn"
    log_level: Annotated[str, About("Least level that is logged; info has a line per request.", choices=LOG_LEVELS)] = (
        "info"
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if not (self.has_keys or self.is_local or self.allow_unauthenticated):
            raise ConfigError(
                f"anybody who reaches {self.host} could use the model: there is no API key\n"
                "Set PACELINE_API_KEY or --api-key-file, or --allow-unauthenticated if that is meant."
            )

    @property
    def has_keys(self) -> bool:
        return bool(self.api_key) or self.api_key_file is not None

    @property
    def is_local(self) -> bool:
        """Only this machine reaches the service."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much clients may ask of the service."""

    max_body_bytes: Annotated[int, About("Largest request body, in bytes; more gets 413.", low=1)] = 2 * 1024 * 1024
    max_header_bytes: Annotated[
        int, About("Largest request line and headers together, in bytes; more gets 431.", low=256)
    ] = 32 * 1024
    max_connections: Annotated[int, About("Connections open at once; more get 503.", low=1)] = 2048
    max_requests: Annotated[int, About("Answers in progress at once, waiting ones included; more get 429.", low=1)] = (
        256
    )
    max_requests_per_key: Annotated[int | None, About("Answers in progress per API key; more get 429.", low=1)] = None
    max_answers_per_call: Annotated[
        int | None, About("Answers that one call may ask for: n or best_of, times its prompts; more get 400.", low=1)
    ] = None
    default_max_tokens: Annotated[
        int, About("Output tokens of a chat that names no limit, as far as context and cache leave room.", low=1)
    ] = 2048
    header_seconds: Annotated[float, About("Seconds within which a request's headers must come.", above=0)] = 10.0
    body_seconds: Annotated[float, About("Seconds within which a request's body must come.", above=0)] = 30.0
    write_seconds: Annotated[
        float, About("Seconds after which a client that takes nothing of its answer is dropped.", above=0)
    ] = 30.0
    keep_alive_seconds: Annotated[float, About("Seconds after which an idle connection is closed.", above=0)] = 30.0
    drain_seconds: Annotated[float, About("Seconds that calls in progress have to end after SIGTERM.", low=0)] = 30.0

    def __post_init__(self) -> None:
        check_fields(self)
