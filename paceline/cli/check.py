"""What one look at a machine, an installation or a choice of model found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

OK, WARNING, BROKEN = "ok", "warning", "broken"
"""From best to worst."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: str
    text: str
    fix: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
