"""Measures steps that verify random trees beside steps that verify chains of as many nodes; writes raw JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paceline import LLM, SamplingParams
from paceline.benchmark.environment import environment
from paceline.benchmark.statistics import paired_ratio
from paceline.core.batch import Verdict
from paceline.core.step import DraftTrees, StepPlan
from paceline.kernels.native import region
from paceline.speculation import ProposerNeeds, ProposerTools, proposers

DEPTH = 4
"""Of the trees."""


class RandomDrafts:
    """Random tokens: chains, or trees whose nodes have random parents."""

    def __init__(self, nodes: int, vocab_size: int, *, trees: bool) -> None:
        self.needs, self.nodes, self.vocab_size = ProposerNeeds(makes_trees=trees), nodes, vocab_size
        self.random = np.random.default_rng(0)

    def bind(self, tools: ProposerTools) -> None:
        pass

    def num_nodes(self, depth: int) -> int:
        return self.nodes if self.needs.makes_trees else depth

    def propose(self, plan: StepPlan) -> DraftTrees:
        shape = len(plan), self.nodes
        tokens = self.random.integers(self.vocab_size, size=shape).astype(np.int32)
        deep = int(plan.draft_depth.min()) >= (DEPTH if self.needs.makes_trees else self.nodes)
        counts = np.full(len(plan), self.nodes if deep else 0, dtype=np.int32)
        if not self.needs.makes_trees:
            return DraftTrees.chains(tokens, counts)
        parents = np.full(shape, -1, dtype=np.int32)
        depths = np.ones(shape, dtype=np.int32)
        for number in range(len(plan)):
            for node in range(1, self.nodes):
                parent = int(self.random.integers(-1, node))
                if parent >= 0 and depths[number, parent] < DEPTH:
                    parents[number, node], depths[number, node] = parent, depths[number, parent] + 1
        return DraftTrees(tokens, parents, counts)

    def observe(self, plan: StepPlan, verdict: Verdict) -> None:
        pass

    def forget(self, seat: int) -> None:
        pass


class Calls:
    """The seconds of each native call: what random drafts cost Python is not of interest."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self) -> None:
        self.seconds.append(time.perf_counter() - self._started)


def block(llm: LLM, batch: int, steps: int) -> float:
    """Seconds of a native call of a step."""
    engine, params = llm.engine, SamplingParams(temperature=0.0, max_tokens=900, ignore_eos=True, detokenize=False)
    groups = [llm.input_processor.group([100 + (7 * one + i) % 50 for i in range(48)], params) for one in range(batch)]
    for group in groups:
        engine.add(group)
    for _ in range(4):
        engine.step()
    calls = Calls()
    region.watches.append(calls)
    for _ in range(steps):
        engine.step()
    region.watches.remove(calls)
    for group in groups:
        engine.abort(group)
    return statistics.median(calls.seconds)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="default: the embedded target")
    parser.add_argument("--option", action="append", default=[], help="NAME=VALUE of the engine")
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--batch", action="append", type=int)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def load(asked: argparse.Namespace) -> dict[str, LLM]:
    """An engine that drafts chains, and one that drafts trees of as many nodes."""
    for name, trees in (("chain", False), ("tree", True)):
        proposers.add(f"random_{name}")(
            lambda _config, target, _load, trees=trees: RandomDrafts(asked.nodes, target.config.vocab_size, trees=trees)
        )
    options: dict[str, Any] = dict(text.split("=", 1) for text in asked.option)
    return {
        name: LLM(
            asked.model,
            speculative_config={"method": f"random_{name}", "num_speculative_tokens": depth},
            max_num_seqs=16,
            max_model_len=1024,
            num_blocks=1100,
            **options,
        )
        for name, depth in (("chain", asked.nodes), ("tree", DEPTH))
    }


def main() -> None:
    asked = arguments()
    llms, records = load(asked), []
    for batch in asked.batch or (1, 8):
        found: dict[str, list[float]] = {name: [] for name in llms}
        for number in range(asked.rounds + 1):
            for name in list(llms) if number % 2 else list(llms)[::-1]:
                seconds = block(llms[name], batch, asked.steps)
                if number:
                    found[name].append(seconds)
        ratio = paired_ratio(found["tree"], found["chain"], lower_is_better=False, seed=0)
        eager = {name: dict(llm.engine.computation.eager_steps) for name, llm in llms.items()}
        medians = {name: statistics.median(seconds) * 1e3 for name, seconds in found.items()}
        print(f"batch {batch}: tree {medians['tree']:.2f} ms, chain {medians['chain']:.2f} ms; ", end="")
        print(f"the tree takes {ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] times as long; {eager}")
        records.append({"batch": batch, "nodes": asked.nodes, "seconds": found, "threads": torch.get_num_threads()})
    if asked.out:
        asked.out.write_text(json.dumps({"environment": environment(), "records": records}) + "\n")


if __name__ == "__main__":
    main()
