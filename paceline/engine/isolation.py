"""Repeats a failed step over parts of its requests, to find the requests that make it fail."""

from __future__ import annotations

from collections.abc import Callable

from paceline.core.request import Request
from paceline.core.step import StepPlan


def isolate(plan: StepPlan, attempt: Callable[[StepPlan], bool], fail: Callable[[Request], None]) -> None:
    """Attempts all of them once more, then halves of what fails; who fails alone is ``fail``'s.

    Of B requests with one culprit this takes at most 1 + 2 log2(B) attempts, and every other request is part of
    exactly one attempt that succeeds.
    """
    parts = [plan]
    while parts:
        part = parts.pop()
        if attempt(part):
            continue
        if len(part) == 1:
            fail(part.requests[0])
        else:
            middle = len(part) // 2
            parts += [part.select(slice(middle, None)), part.select(slice(middle))]
