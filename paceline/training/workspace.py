"""Knows what lies under --work: which run it is, how long it is to be, and where its files are."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paceline.core.errors import ConfigError
from paceline.training.options import RunOptions
from paceline.training.stream import Blocks

# What may change between a run and its continuation without changing what it computes.
INCIDENTAL = {"out", "work", "checkpoint_every", "report_every", "eval_rows", "eval_prompts", "eval_tokens"}


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


def planned_steps(options: RunOptions, measure: Callable[[float], int]) -> int:
    """``--steps``, or what ``--minutes`` came to when the run began.

    The number is measured once and kept, so that the schedule of a resumed run is that of the run that was killed.
    """
    if options.minutes is None:
        return options.steps
    plan = options.work_directory / "plan.json"
    if plan.exists():
        kept = json.loads(plan.read_text(encoding="utf-8"))
        if kept["minutes"] != options.minutes:
            raise ConfigError(
                f"{plan} is of a run of {kept['minutes']} minutes, now {options.minutes}\n"
                "Give the same --minutes to go on with it, or another --work to begin anew."
            )
        return int(kept["steps"])
    steps = measure(options.minutes * 60)
    write_json(plan, {"minutes": options.minutes, "steps": steps})
    return steps
