"""Knows how long a step may take before others stop waiting for it, and what they are told then."""

from __future__ import annotations

from paceline.core.errors import EngineStalledError

STALL_SECONDS = 60.0
"""A step that takes longer than this is taken for stuck."""
STATS_SECONDS = 5.0
"""Who asks for statistics waits no longer for the step that runs."""


def stalled() -> EngineStalledError:
    return EngineStalledError("the engine is stuck in a step and does not answer\nAsk again, or see /health.")
