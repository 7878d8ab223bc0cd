"""Knows which other engines there are: what they need, which script speaks for them, which settings are tried."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paceline.core.registry import Registry

ADAPTERS = Path(__file__).with_name("adapters")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One engine in one way of using it."""

    adapter: Path
    requirements: Sequence[str]
    """What pip installs into its environment."""
    sweep: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Setting -> values: every combination is tried, and the fastest counts."""
    needs_draft: bool = False
    """It is given our draft model's directory as the setting ``assistant``."""

    def settings(self, draft: str | None) -> list[dict[str, Any]]:
        """Every combination of the sweep."""
        names = list(self.sweep)
        found = [dict(zip(names, values, strict=True)) for values in itertools.product(*self.sweep.values())]
        return [one | {"assistant": draft} for one in found] if self.needs_draft else found


peers: Registry[Peer] = Registry("peer")

TRANSFORMERS = ADAPTERS / "transformers_adapter.py"
TORCH = ("torch", "transformers>=5.3")
DTYPES = ("float32", "bfloat16")
peers.add("transformers")(Peer(adapter=TRANSFORMERS, requirements=TORCH, sweep={"dtype": DTYPES}))
peers.add("transformers-assisted")(
    Peer(adapter=TRANSFORMERS, requirements=TORCH, sweep={"dtype": DTYPES}, needs_draft=True)
)
peers.add("transformers-prompt-lookup")(
    Peer(adapter=TRANSFORMERS, requirements=TORCH, sweep={"dtype": DTYPES, "prompt_lookup_num_tokens": (4, 10)})
)
