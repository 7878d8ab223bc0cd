"""The protocol of draft policies: how deep the draft of each request is in the next step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from paceline.core.batch import Int32
from paceline.core.registry import Registry


class DraftPolicy(Protocol):
    """Asked by the scheduler before each step, for requests that may be drafted for."""

    max_depth: int

    def depths(self, seats: Int32, room: Int32) -> Int32:
        """How deep drafts are, int32[B] in [0, max_depth], for seats int32[B] with ``room`` int32[B] of at least 0 for
        tokens behind the next one. 0 decodes plainly."""
        ...


draft_policies: Registry[Callable[[int], DraftPolicy]] = Registry("draft policy")
"""num_speculative_tokens -> policy"""
