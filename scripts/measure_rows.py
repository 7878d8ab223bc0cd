"""Measures what a pass of the embedded target over n rows costs beside one over a single row; writes raw JSON."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from paceline import LLM, SamplingParams
from paceline.core import machine
from paceline.core.batch import Drafts
from paceline.runner import assemble

ROWS = (1, 2, 4, 8)


def passes(rounds: int, context: int) -> dict[int, list[float]]:
    """Seconds of each pass, row counts taken in turn, behind ``context`` known tokens."""
    llm = LLM(speculative_config=None)
    engine = llm.engine
    params = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
    engine.add(llm.intake.group([7] * context, params))
    engine.step()
    seconds: dict[int, list[float]] = {rows: [] for rows in ROWS}
    for number in range(rounds + 20):
        for rows in ROWS:
            works = engine.scheduler.plan()
            engine.cache.reserve(int(works.seats[0]), int(works.end[0]) + rows, engine.target_groups)
            nodes = np.full((1, rows - 1), 9, dtype=np.int32)
            drafts = Drafts.chains(nodes, np.array([rows - 1], dtype=np.int32))
            batch = assemble(works, drafts, engine.seats, engine.runner.groups)
            started = time.perf_counter()
            engine.runner.forward(batch)
            if number >= 20:
                seconds[rows].append(time.perf_counter() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--context", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    seconds = passes(arguments.rounds, arguments.context)
    ratios = {n: [a / b for a, b in zip(seconds[n], seconds[1], strict=True)] for n in ROWS}
    for rows in ROWS:
        low, middle, high = statistics.quantiles(ratios[rows], n=4)
        cost = statistics.median(seconds[rows]) * 1e3
        print(f"{rows} rows: {cost:.2f} ms, {middle:.2f} times one row (quartiles {low:.2f} to {high:.2f})")
    record = {
        "machine": {
            "processor": machine.cpu_model(),
            "threads": arguments.threads,
            "python": platform.python_version(),
        },
        "torch": torch.__version__,
        "dtype": "float32",
        "context": arguments.context,
        "seconds": seconds,
    }
    arguments.out.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
