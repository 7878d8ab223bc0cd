"""Knows who takes part, ours and others, each a process that speaks the peers' protocol; nothing of what is asked."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from paceline.benchmark.peers import Peer, PeerError, PeerProcess, environment_python, peers
from paceline.benchmark.peers.catalogue import ADAPTERS, INT4_AGREEMENT, INT8_AGREEMENT
from paceline.core.errors import ConfigError

OURS = ADAPTERS / "paceline_adapter.py"
FLOAT32 = {"dtype": "float32", "device": "cpu"}
KINDS = {
    "float32": "fp32",
    "f32": "fp32",
    "bfloat16": "bf16",
    "bf16": "bf16",
    "float16": "fp16",
    "int8": "int8",
    "q8_0": "int8",
    "8": "int8",
    "int4": "int4",
    "q4_0": "int4",
    "4": "int4",
}
"""How engines spell a kind of weights -> its name among the probes."""
BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.0, "int4": 0.5}
"""Per weight, without scales: the share of bandwidth that follows is on the low side."""
LEAST = {"int8": INT8_AGREEMENT, "int4": INT4_AGREEMENT}


@dataclass(frozen=True, slots=True)
class Contender:
    """One that may take part."""

    name: str
    ours: bool
    adapter: Path
    settings: Sequence[dict[str, Any]]
    """Those to try."""
    least_agreement: float
    start: Callable[[], Path]
    """Gives the Python to run it with."""
    speculates: bool = False


def kind_of(settings: Mapping[str, Any]) -> str:
    """The kind of weights that settings ask for."""
    for name in ("quantization", "type", "bits", "dtype"):
        spelled = str(settings.get(name, ""))
        for start, kind in KINDS.items():
            if spelled.startswith(start):  # what follows is a variant, such as a size of groups
                return kind
    return "fp32"


def parse_ours(text: str) -> tuple[str, dict[str, Any]]:
    """``NAME:key=value,key=value`` -> (name, engine options); values are JSON where they can be.

    Raises:
        ConfigError: it is not of that form.
    """
    name, colon, rest = text.partition(":")
    pairs = [item.partition("=") for item in rest.split(",")] if rest else []
    if not name or not colon or not all(key and equals for key, equals, _ in pairs):
        raise ConfigError(f"{text!r} is no configuration\nGive one like bf16:dtype=bfloat16,max_num_seqs=8.")
    return name, {key.strip(): _value(value) for key, _, value in pairs}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def ours(text: str) -> Contender:
    """A configuration of ours as a contender."""
    name, options = parse_ours(text)
    least = LEAST.get(kind_of(options), 0.9)
    settings = {"device": "cpu", **options}
    return Contender(f"ours {name}", True, OURS, [settings], least, lambda: Path(sys.executable))


def theirs(name: str, environments: Path, *, quick: bool) -> Contender:
    """A peer as a contender; ``quick`` tries the first of its settings only."""
    peer: Peer = peers[name]
    settings = peer.settings(None)
    return Contender(
        name,
        False,
        peer.adapter,
        settings[:1] if quick else settings,
        peer.least_agreement,
        partial(environment_python, environments, peer),
        peer.speculates,
    )


class Running:
    """The processes of some contenders, each started when it is first wanted; a context manager."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note, self._stack = note, ExitStack()
        self._found: dict[str, PeerProcess] = {}
        self.missing: dict[str, str] = {}
        """Those that could not be started, and why."""

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def get(self, contender: Contender) -> PeerProcess | None:
        """Its process, or None if it cannot be started."""
        if contender.name not in self._found and contender.name not in self.missing:
            self._note(f"{contender.name}: starting")
            try:
                process = PeerProcess(contender.start(), contender.adapter)
            except PeerError as error:
                self.missing[contender.name] = str(error)
            else:
                self._found[contender.name] = self._stack.enter_context(process)
        return self._found.get(contender.name)
