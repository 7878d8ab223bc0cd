"""Knows what a service says of itself once it listens: where, what, how, and where its settings came from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from paceline.cli.terminal import FAINT, console
from paceline.core.resolution import Resolution
from paceline.core.service_config import ServiceConfig

if TYPE_CHECKING:
    from paceline.engine.facts import EngineFacts

EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 (not bound to, only replaced)
MOST_FLAGS = 6
"""Settings named one by one; of more, how many."""


def announce(
    facts: EngineFacts, name: str, service: ServiceConfig, resolution: Resolution, port: int, *, seed: int | None = None
) -> None:
    """Prints it; plain where standard output is no terminal. ``seed``: one that was drawn."""
    out, url = console(), service_url(service, port)
    out.out(f"Paceline serves {name} at {url}", style="bold")
    for label, text in described(facts, resolution):
        out.out(f"  {label:<13}", style=FAINT, end="")
        out.out(text)
    if seed is not None:
        out.out("  seed         ", style=FAINT, end="")
        out.out(f"{seed}, drawn for calls that name none; --seed {seed} draws theirs again")
    if service.is_local:
        out.out("  hosts        ", style=FAINT, end="")
        out.out(hosts_line(service))
    out.out("  try          ", style=FAINT, end="")
    out.out(curl_line(url, service, resolution))
    out.file.flush()


def hosts_line(service: ServiceConfig) -> str:
    """By which names the service may be called, and how others are let in, such as that of a container's host."""
    from paceline.server.doors import hosts_of

    return f"{', '.join(dict.fromkeys(hosts_of(service)))}; others by --allowed-hosts host.docker.internal, say"


def service_url(service: ServiceConfig, port: int) -> str:
    """As this machine reaches it."""
    host = EVERYWHERE.get(service.host, service.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def described(facts: EngineFacts, resolution: Resolution) -> Iterator[tuple[str, str]]:
    """(label, text) of each line between the heading and the example."""
    yield "weights", f"{facts.dtype} on {facts.device}, {facts.num_threads} threads"
    yield "context", f"{facts.max_model_len} tokens"
    yield "K/V cache", f"{facts.kv_cache_dtype}, {facts.num_pages} pages of {facts.page_size} tokens, {facts.cache}"
    drafts = "off"
    if facts.speculative_method is not None:
        depth = f"{facts.num_speculative_tokens} draft tokens per step"
        drafts = f"{facts.speculative_method}, {depth}, verified by {facts.verifier}"
    yield "speculation", drafts
    yield "scheduling", f"{facts.scheduling_policy}, up to {facts.max_num_seqs} sequences at once"
    yield "settings", sources(resolution)


def sources(resolution: Resolution) -> str:
    """Where settings that are not at their defaults came from: files first, then variables and flags."""
    found = [found.source for section in resolution.found.values() for found in section.values() if found.given]
    files = [str(path) for path in resolution.files]
    others = [source.name for source in found if source.kind != "file"]
    if len(others) > MOST_FLAGS:
        others = [*others[:MOST_FLAGS], f"{len(others) - MOST_FLAGS} more"]
    return ", ".join([*files, *others]) or "defaults"


def curl_line(url: str, service: ServiceConfig, resolution: Resolution) -> str:
    """A command that gets an answer; a key appears as the variable that holds it, never itself."""
    key = resolution.found["service"]["api_key"]
    bearer = ""
    if service.has_keys:
        shown = f"${key.setting.variable}" if key.source.kind == "environment" else "YOUR_KEY"
        bearer = f' -H "Authorization: Bearer {shown}"'
    return f"curl {url}/chat{bearer} -H 'Content-Type: application/json' -d '{json.dumps({'message': 'Hello'})}'"
