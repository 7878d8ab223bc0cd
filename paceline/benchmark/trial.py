"""Knows what a trial is: one side's work, run once, and the figures it gave; nothing of how trials are ordered."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paceline.core.errors import PacelineError

SUBJECT, CONTROL = "subject", "control"
Clock = Callable[[], float]
"""Seconds on a clock that never goes back."""


class TrialError(PacelineError):
    """A trial that gave no figures."""


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What one trial gave."""

    figures: Mapping[str, float]
    """Seconds, tokens and the like, by name; JSON numbers."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else is worth keeping: token times, acceptance, memory; JSON."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the two that are compared."""

    label: str
    """For people: "speculation on"."""
    run: Callable[[int], TrialResult]
    """Does the work once. Gets the pair's number, by which both sides choose the same prompts; -1 and below warm up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One point of a benchmark: a subject, its control, and the figure that decides."""

    name: str
    parameters: Mapping[str, Any]
    subject: Variant
    control: Variant
    metric: str
    """The figure that both sides' trials are compared by."""
    lower_is_better: bool = True
    work_bytes: int | None = None
    """About how many bytes a pass of the work touches, which the probes then touch too; None leaves it to them."""
    finish: Callable[[], Mapping[str, Any]] | None = None
    """Runs once after the trials, untimed: what is counted rather than timed (bytes, FLOPs, memory)."""


def command_side(
    label: str, command: Sequence[str], *, clock: Clock = time.perf_counter, limit: float = 3600
) -> Variant:
    """A side that is a program: it is started anew for every trial and timed from start to end.

    If its last line on standard output is a JSON object, that object's numbers are figures too.

    Raises:
        TrialError: (from ``run``) it could not be started, failed, or ran longer than ``limit`` seconds.
    """

    def run(_pair: int) -> TrialResult:
        started = clock()
        try:
            done = subprocess.run(  # noqa: S603 (the user's own command, without a shell)
                list(command), capture_output=True, text=True, check=False, timeout=limit, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise TrialError(f"{label}: {error}\nTry the command alone.") from None
        seconds = clock() - started
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise TrialError(f"{label}: the command ended with code {done.returncode}: {said}\nTry it alone.")
        return TrialResult({"seconds": seconds} | _numbers(done.stdout))

    return Variant(label, run)


def _numbers(output: str) -> dict[str, float]:
    lines = output.strip().splitlines()
    try:
        values = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    if not isinstance(values, dict):
        return {}
    return {name: float(v) for name, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
