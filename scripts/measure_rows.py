"""Measures what a model's pass over n rows costs beside one over a single row, between probes; writes raw JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paceline import LLM, SamplingParams
from paceline.benchmark.environment import environment
from paceline.benchmark.probes import MachineProbes, MachineSpeed
from paceline.benchmark.weights import main_kind, main_pages, weights
from paceline.core.step import DraftTrees
from paceline.engine.engine import Engine
from paceline.runner import verify_rows

ROWS = (1, 2, 4, 8, 16)
WARM_UP = 5
MOST_OF_ONE_ROW, SHARE_OF_COMPUTE = 1.4, 0.8
"""The goal: 8 rows cost at most so many times one, or as long as at this share of the probed compute."""


def passes(llm: LLM, rounds: int, context: int) -> dict[int, list[float]]:
    """Seconds of each pass, row counts taken in turn, behind ``context`` known tokens."""
    engine = llm.engine
    group = llm.input_processor.group([7] * context, SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True))
    engine.add(group)
    engine.step()
    seconds: dict[int, list[float]] = {rows: [] for rows in ROWS}
    for number in range(rounds + WARM_UP):
        for rows in ROWS:
            found = one_pass(engine, rows)
            if number >= WARM_UP:
                seconds[rows].append(found)
    engine.abort(group)
    return seconds


def one_pass(engine: Engine, rows: int) -> float:
    """Seconds of a pass over the last known token and a chain behind it."""
    plan = engine.scheduler.plan()
    engine.cache.reserve(int(plan.seats[0]), int(plan.end[0]) + rows, engine.target_groups)
    nodes = np.full((1, rows - 1), 9, dtype=np.int32)
    drafts = DraftTrees.chains(nodes, np.array([rows - 1], dtype=np.int32))
    batch = verify_rows(plan, drafts, engine.seats, engine.runner.groups).batch
    started = time.perf_counter()
    engine.runner.forward(batch)
    return time.perf_counter() - started


def verdict(seconds: dict[int, list[float]], num_bytes: int, num_weights: int, probes: list[MachineSpeed]) -> list[str]:
    """Lines for the eye: the curve, the bandwidth at one row, and the goal for 8 rows."""
    one = statistics.median(seconds[1])
    bandwidth = statistics.median(reading.bytes_per_second for reading in probes)
    compute = statistics.median(reading.flops_per_second for reading in probes)
    lines = []
    for rows in ROWS:
        ratios = [a / b for a, b in zip(seconds[rows], seconds[1], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        cost = statistics.median(seconds[rows]) * 1e3
        lines.append(f"{rows} rows: {cost:.2f} ms, {middle:.2f} times one row (quartiles {low:.2f} to {high:.2f})")
    lines.append(f"one row reads at {num_bytes / one / bandwidth:.0%} of the probed {bandwidth / 1e9:.1f} GB/s")
    most = max(MOST_OF_ONE_ROW * one, 2 * 8 * num_weights / (SHARE_OF_COMPUTE * compute))
    eight = statistics.median(seconds[8])
    word = "holds" if eight <= most else "missed"
    lines.append(
        f"8 rows in at most {most * 1e3:.2f} ms ({compute / 1e9:.0f} G/s probed): {word}, {eight * 1e3:.2f} ms"
    )
    return lines


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a directory or Hub id; by default the embedded target")
    parser.add_argument("--option", action="append", default=[], help="NAME=VALUE of the engine")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--context", type=int, default=128)
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    torch.set_num_threads(asked.threads)
    options: dict[str, Any] = dict(text.split("=", 1) for text in asked.option)
    llm = LLM(asked.model, speculative_config=None, max_num_seqs=2, max_model_len=512, **options)
    model = llm.engine.runner.model
    linears = [module.packed for module in model.modules() if getattr(module, "packed", None) is not None]
    num_weights = sum(packed.in_features * packed.out_features for packed in linears)
    num_bytes = sum(tensor.nbytes for _, tensor in weights(model))
    probe = MachineProbes(torch.device("cpu"), main_kind(model), pages=main_pages(model))
    probes = [probe.read(num_bytes)]
    seconds = passes(llm, asked.rounds, asked.context)
    probes.append(probe.read(num_bytes))
    lines = verdict(seconds, num_bytes, num_weights, probes)
    print("\n".join(lines))
    record = {
        "environment": environment(),
        "parameters": {name: str(value) for name, value in vars(asked).items()},
        "weights": {"bytes": num_bytes, "number": num_weights},
        "probes": [asdict(reading) for reading in probes],
        "seconds": seconds,
        "found": lines,
    }
    asked.out.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
