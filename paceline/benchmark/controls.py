"""Knows what a subject can be compared with: the same engine with one technique taken away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paceline.core.registry import Registry


@dataclass(frozen=True, slots=True)
class Control:
    """How a control differs from the subject."""

    label: str
    speculate: bool = True
    """False asks every call to decode plainly, on the subject's own engine."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Engine options that differ; the control then has an engine of its own beside the subject's."""


controls: Registry[Control] = Registry("control")
controls.add("speculation")(Control("speculation off", speculate=False))
controls.add("prefix-cache")(Control("prefix cache off", options={"enable_prefix_caching": False}))
controls.add("batching")(Control("one at a time", options={"max_num_seqs": 1}))
controls.add("same")(Control("the same again"))
