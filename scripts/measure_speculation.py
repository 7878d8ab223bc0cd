"""Measures what drafting gains the embedded pair beside the most that a cost model says it could; writes raw JSON.

The model: costs of a plain pass, and of a round that drafts K tokens and verifies them, are timed alone, as native
calls with the sampling in them, and acceptance by depth is counted on drafts of the greatest depth. A round of depth K
then gives 1 + P(1) + ... + P(K) tokens, and drafting at its best is as many times as fast as the best K's quotient
says, with no cost outside native calls. What is measured is decoding time after the first token, drafting on and off
in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from paceline import LLM, SamplingParams
from paceline.benchmark.environment import environment
from paceline.benchmark.statistics import paired_ratio
from paceline.engine.pair import EMBEDDED_SPECULATION
from paceline.kernels.native import region

QUESTIONS = Path(__file__).parent / "pair" / "questions.json"
Messages = list[dict[str, str]]


class Calls:
    """The seconds of each native call."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def start(self) -> None:
        self._started = perf_counter()

    def stop(self) -> None:
        self.seconds.append(perf_counter() - self._started)


@contextmanager
def timed_calls() -> Iterator[Calls]:
    calls = Calls()
    region.watches.append(calls)
    try:
        yield calls
    finally:
        region.watches.remove(calls)


def built(depth: int, steps: int | None) -> LLM:
    speculation: Any = {**EMBEDDED_SPECULATION, "num_speculative_tokens": depth}
    return LLM(speculative_config=speculation, max_num_seqs=2, num_scheduler_steps=steps, num_blocks=256)


def dialogues() -> list[Messages]:
    return [item["messages"] for item in json.loads(QUESTIONS.read_text())["dialogues"]]


def answer(llm: LLM, messages: Messages, asked: argparse.Namespace, *, speculate: bool) -> tuple[list[int], float]:
    """Token ids, and the seconds after the first."""
    params = SamplingParams(temperature=asked.temperature, seed=7, max_tokens=asked.tokens, ignore_eos=asked.ignore_eos)
    (found,) = llm.chat(messages, params, speculate=speculate)
    return found.outputs[0].token_ids, found.metrics.decode_time or 0.0


def costs(llms: dict[int, LLM], asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the calls of a plain token, and of rounds of drafts of each depth and their verification."""
    plain: list[float] = []
    rounds: dict[int, list[float]] = {depth: [] for depth in llms}
    for messages in dialogues()[: asked.dialogues]:
        for depth, llm in llms.items():
            with timed_calls() as calls:
                answer(llm, messages, asked, speculate=True)
            rounds[depth] += calls.seconds[2:-2]  # the first step reads the prompt, and the last ones draft less
        with timed_calls() as calls:
            answer(next(iter(llms.values())), messages, asked, speculate=False)
        plain += calls.seconds[2:]
    return {"plain": plain, "rounds": rounds}


def acceptance(llm: LLM, asked: argparse.Namespace) -> list[float]:
    """How often the draft token at each depth stands, of all drafts."""
    for messages in dialogues():
        answer(llm, messages, asked, speculate=True)
    counters = llm.engine.counters
    return (np.asarray(counters.accepted_per_position) / counters.num_drafts).tolist()


def best(found: dict[str, Any], accepted: list[float]) -> dict[int, float]:
    """Depth -> how many times as fast as plain decoding, at no cost outside native calls."""
    plain = statistics.median(found["plain"])
    ratios = {}
    for depth, seconds in found["rounds"].items():
        cost = statistics.median(seconds)
        ratios[depth] = (1 + sum(accepted[:depth])) * plain / cost
    return ratios


def measured(llm: LLM, asked: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of all dialogues together, drafting off and on in turn."""
    seconds: dict[str, list[float]] = {"off": [], "on": []}
    for number in range(asked.pairs + 1):
        texts = {}
        for name in ("off", "on") if number % 2 else ("on", "off"):
            answers = [answer(llm, messages, asked, speculate=name == "on") for messages in dialogues()]
            texts[name] = [tokens for tokens, _ in answers]
            if number:
                seconds[name].append(sum(taken for _, taken in answers))
        if texts["off"] != texts["on"]:
            raise RuntimeError("drafting changed a text")
    return seconds


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--ignore-eos", action="store_true", help="answers of --tokens tokens")
    parser.add_argument("--most", type=int, default=6, help="greatest depth of a draft")
    parser.add_argument("--dialogues", type=int, default=6, help="dialogues for the costs")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    torch.set_num_threads(asked.threads)
    llms = {depth: built(depth, 1) for depth in range(1, asked.most + 1)}
    accepted = acceptance(llms[asked.most], asked)
    found = costs(llms, asked)
    optimum = best(found, accepted)
    depth = max(optimum, key=lambda one: optimum[one])
    shipped = int(EMBEDDED_SPECULATION["num_speculative_tokens"])
    record: dict[str, Any] = {
        "environment": environment(),
        "parameters": {name: str(value) for name, value in vars(asked).items()},
        "acceptance": accepted,
        "costs": found,
        "optimum": optimum,
        "measured": {},
    }
    print("acceptance by depth: " + ", ".join(f"{one:.2f}" for one in accepted))
    print("the model, by depth: " + ", ".join(f"{one} {ratio:.2f}" for one, ratio in optimum.items()))
    for one in sorted({shipped, depth}):
        seconds = measured(built(one, None), asked)
        ratio = paired_ratio(seconds["on"], seconds["off"], lower_is_better=True, seed=0)
        record["measured"][one] = {"seconds": seconds, "ratio": asdict(ratio)}
        share = ratio.median / optimum[depth]
        print(
            f"depth {one}: {ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] times as fast as plain decoding, "
            f"{share:.0%} of the optimum (depth {depth}, {optimum[depth]:.2f})"
        )
    asked.out.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
