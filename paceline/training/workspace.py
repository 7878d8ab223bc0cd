"""Knows what lies under --work: which run it is, how long it is to be, and where its files are."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paceline.core.errors import ConfigError
from paceline.training.options import RunOptions
from paceline.training.stream import Blocks

# What may change between a run and its continuation without changing what it computes.
INCIDENTAL = {
    "out",
    "work",
    "checkpoint_every",
    "report_every",
    "eval_rows",
    "eval_prompts",
    "eval_tokens",
    "export_only",
    "replies_from",
}


def run_key(options: RunOptions, blocks: Blocks) -> str:
    """One line per option that decides the weights, and a digest of the data: equal for equal runs only."""
    digest = hashlib.sha256()
    for part in blocks.parts:
        digest.update(part.stream.tokens.numpy().tobytes() + part.stream.reply.numpy().tobytes())
    lines = {name: str(value) for name, value in asdict(options).items() if name not in INCIDENTAL}
    return "\n".join(f"{name} {value}" for name, value in [*lines.items(), ("data digest", digest.hexdigest()[:16])])


def write_json(path: Path, value: Any) -> None:
    """Writes whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(new, path)


def check_same_run(path: Path, before: str, now: str) -> None:
    """Raises ConfigError if ``path`` was written by a run with another key; names the first difference."""
    if before == now:
        return
    pairs = zip(before.splitlines(), now.splitlines(), strict=False)
    named = next((f"{one}, now {other}" for one, other in pairs if one != other), "another kind of run")
    raise ConfigError(
        f"{path} is of a run with other options or data: {named}\n"
        "Give the same options to go on with it, or another --work to begin anew."
    )


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What was measured when a run began, and must stay so that a resumed run equals one that never stopped."""

    run: str
    steps: int
    compiled: bool

    @classmethod
    def kept(cls, path: Path, key: str) -> RunPlan | None:
        """The plan in the file, if there is one.

        Raises:
            ConfigError: it is another run's.
        """
        if not path.exists():
            return None
        plan = cls(**json.loads(path.read_text(encoding="utf-8")))
        check_same_run(path, plan.run, key)
        return plan

    def keep(self, path: Path) -> None:
        write_json(path, asdict(self))


def make_plan(
    options: RunOptions, key: str, seconds_per_step: Callable[[bool], float], *, worth_trying: bool
) -> RunPlan:
    """Decides how many steps, and whether compiled; tries where the options leave it open.

    Args:
        seconds_per_step: measures with the loss compiled (True) or plain.
        worth_trying: whether the run is long enough to win back a trial of torch.compile.
    """
    compiled = bool(options.compile)
    if options.compile is None and worth_trying:
        compiled = seconds_per_step(True) < seconds_per_step(False)
    steps = options.steps
    if options.minutes is not None:
        steps = max(1, round(options.minutes * 60 / max(seconds_per_step(compiled), 1e-9)))
    return RunPlan(key, steps, compiled)
