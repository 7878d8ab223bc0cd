"""Measures how long ``Pipeline.sample`` takes, by control and size of vocabulary, native and in torch; writes raw JSON.

So does it with log-probabilities. Rounds interleave everything, and a call is timed right behind one that is not: in an
engine a pass has just written the logits, and its threads are awake. Figures of a machine that does anything else
meanwhile mean nothing. Set OMP_WAIT_POLICY=PASSIVE: torch's threads otherwise spin on where native ones are to compute.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paceline.core import machine
from paceline.core.batch import SampleRows
from paceline.core.params import SamplingParams
from paceline.core.request import Group, Request
from paceline.core.seats import Seats
from paceline.kernels.native import library
from paceline.sampling import Pipeline, SamplingState
from paceline.sampling.samplers import samplers
from scripts.measure_kernels import seconds

SIZES = ((152_000, 8), (8192, 1))
"""Vocabularies and rows."""
CONTROLS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "plain": {},
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 50},
    "top_p": {"top_p": 0.9},
    "min_p": {"min_p": 0.05},
    "all three": {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.05},
    "penalties": {"repetition_penalty": 1.1, "presence_penalty": 0.5},
    "every edit": {
        "allowed_token_ids": list(range(0, 8192, 4)),
        "logit_bias": dict.fromkeys(range(0, 400, 4), 1.0),
        "min_tokens": 64,
        "max_tokens": 64,
        "stop_token_ids": [8, 12],
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.2,
    },
}
TOP_LOGPROBS = 5
SPREAD = 3.0
"""Standard deviation of the logits."""


def seated(sampler: str, vocab_size: int, num_rows: int, controls: dict[str, Any]) -> tuple[Pipeline, SampleRows]:
    """As many requests, of 40 tokens of output each, and a row of each."""
    seats = Seats(num_rows, 64)
    state = SamplingState(seats, vocab_size, "cpu")
    for seed in range(num_rows):
        group = Group("group", [1, 2, 3], SamplingParams(**controls), bad_words_token_ids=())
        request = Request("request", group, 0, seed, frozenset(), 64, output_token_ids=list(range(seed, seed + 40)))
        seats.join(request)
        state.join(request)
    index = np.arange(num_rows)
    rows = SampleRows(index.astype(np.int32), index + 40, np.zeros((num_rows, 0), dtype=np.int32))
    return Pipeline(state, sampler), rows


def random_logits(vocab_size: int, num_rows: int) -> torch.Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(num_rows)) * SPREAD


def passes(sampler: str, vocab_size: int, num_rows: int, controls: dict[str, Any]) -> Callable[[], object]:
    """One call that samples each request's row."""
    pipeline, rows = seated(sampler, vocab_size, num_rows, controls)
    return partial(pipeline.sample, random_logits(vocab_size, num_rows), rows)


def passes_of_logprobs(sampler: str, vocab_size: int, num_rows: int) -> Callable[[], object]:
    """One call for the log-probability of a token of each row, and the likeliest tokens."""
    pipeline, _ = seated(sampler, vocab_size, num_rows, {})
    numbers, top = list(range(num_rows)), [TOP_LOGPROBS] * num_rows
    return partial(pipeline.logprobs, random_logits(vocab_size, num_rows), numbers, numbers, top)


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Per sampler, size and control, each round's seconds."""
    work = {
        f"{sampler} {name} {vocab_size}x{num_rows}": passes(sampler, vocab_size, num_rows, controls)
        for vocab_size, num_rows in SIZES
        for name, controls in CONTROLS.items()
        for sampler in options.samplers
    }
    work |= {
        f"{sampler} logprobs {vocab_size}x{num_rows}": passes_of_logprobs(sampler, vocab_size, num_rows)
        for vocab_size, num_rows in SIZES
        for sampler in options.samplers
    }
    found: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(options.rounds):
        for name, run in work.items():
            run()
            found[name].append(seconds(run))
    for name, rounds in found.items():
        print(f"{name:<32} {statistics.median(rounds) * 1e6:9.0f} us, at least {min(rounds) * 1e6:9.0f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--samplers", nargs="+", choices=list(samplers), default=list(samplers))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measure(options)
    record = {
        "machine": {"processor": machine.cpu_model(), "load": os.getloadavg()},
        "torch": torch.__version__,
        "level": library.level(),
        "threads that wait": os.environ.get("OMP_WAIT_POLICY", ""),
        "options": {name: str(value) for name, value in vars(options).items()},
        "seconds": found,
    }
    options.out.write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
