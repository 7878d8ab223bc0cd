"""What a call asks of the engine besides how its tokens are chosen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """Options of one call; whoever adds the call to an engine checks them."""

    speculate: bool = True
    """False decodes plainly, to the same tokens."""
    priority: int = 0
    """The policy "priority" serves lower numbers first, as vLLM does."""
    client: str = ""
    """Who calls; the policy "fair" shares the engine between clients."""
    cache_salt: str = ""
    """Prefixes are shared only between calls with the same salt."""
    pooling: str | None = None
    """How the prompt's hidden states become one embedding ("mean", "last"); None generates text."""
