"""Options of the service, resolved once and never changed; every field is a flag, a variable and a file key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from paceline.core.settings import About, check_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """Where the service listens."""

    host: Annotated[str, About("Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, About("Port to listen on; 0 takes a free one.")] = 8000

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one client may ask of the service."""

    max_body_bytes: Annotated[int, About("Largest request body, in bytes.", low=1)] = 2 * 1024 * 1024
    max_requests: Annotated[int, About("Calls in progress at once, waiting ones included; more get 429.", low=1)] = 256
    default_max_tokens: Annotated[
        int, About("Output tokens of a chat that names no limit, as far as context and cache leave room.", low=1)
    ] = 2048
    write_seconds: Annotated[
        float, About("Seconds after which a streaming client that takes nothing is dropped.", above=0)
    ] = 30.0

    def __post_init__(self) -> None:
        check_fields(self)
