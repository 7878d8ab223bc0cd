"""Measures what speculation gains a model when drafts are accepted as often as told, and cost nothing: a replay.

The drafts are the model's own text, with wrong tokens mixed in at a given rate. Figures from it say what verification
allows, not what a drafter reaches; writes raw JSON, marked as a replay.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paceline import LLM, SamplingParams
from paceline.benchmark.environment import environment
from paceline.benchmark.statistics import paired_ratio
from paceline.core.batch import Verdict
from paceline.core.outputs import RequestOutput
from paceline.core.request import Request
from paceline.core.step import DraftTrees, StepPlan
from paceline.speculation import ProposerNeeds, ProposerTools, proposers

METHOD = "replay"
TEXTS: dict[tuple[int, ...], list[int]] = {}
"""Prompt -> what the model answers."""
RATE: list[float] = []
"""With what probability a drafted token is right, if those before it are."""


class ReplayProposer:
    """Chains of the known answer, of which a token is wrong now and then."""

    needs = ProposerNeeds()

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.random = np.random.default_rng(0)

    def bind(self, tools: ProposerTools) -> None:
        pass

    def num_nodes(self, depth: int) -> int:
        return depth

    def propose(self, plan: StepPlan) -> DraftTrees:
        width = int(plan.draft_depth.max(initial=0))
        tokens = np.zeros((len(plan), width), dtype=np.int32)
        counts = np.zeros(len(plan), dtype=np.int32)
        for number in np.flatnonzero(plan.draft_depth > 0).tolist():
            found = self._draft(plan.requests[number], int(plan.draft_depth[number]))
            tokens[number, : len(found)], counts[number] = found, len(found)
        return DraftTrees.chains(tokens, counts)

    def _draft(self, request: Request, depth: int) -> list[int]:
        first = len(request.output_token_ids)
        truth = TEXTS.get(tuple(request.prompt_token_ids), [])[first : first + depth]
        right = self.random.random(len(truth)) < RATE[0]
        return [token if kept else (token + 1) % self.vocab_size for token, kept in zip(truth, right, strict=True)]

    def observe(self, plan: StepPlan, verdict: Verdict) -> None:
        pass

    def forget(self, seat: int) -> None:
        pass


proposers.add(METHOD)(lambda _config, target, _load: ReplayProposer(target.config.vocab_size))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--option", action="append", default=[], help="NAME=VALUE of the engine")
    parser.add_argument("--acceptance", type=float, default=0.7)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def save(asked: argparse.Namespace, seconds: dict[str, list[float]], tokens_per_step: list[float]) -> None:
    ratio = paired_ratio(seconds["replay"], seconds["plain"], lower_is_better=True, seed=0)
    interval = f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
    figures = f"{interval} times as fast, {np.mean(tokens_per_step):.2f} tokens a step"
    print(f"replay, acceptance {asked.acceptance:g}, depth {asked.depth}: {figures}")
    record = {
        "environment": environment(),
        "replay": True,
        "parameters": {name: str(value) for name, value in vars(asked).items()},
        "seconds": seconds,
        "tokens_per_step": tokens_per_step,
        "ratio": asdict(ratio),
    }
    asked.out.write_text(json.dumps(record) + "\n")


def main() -> None:
    asked = arguments()
    torch.set_num_threads(asked.threads)
    RATE.append(asked.acceptance)
    options: dict[str, Any] = dict(text.split("=", 1) for text in asked.option)
    speculation = {"method": METHOD, "num_speculative_tokens": asked.depth}
    llm = LLM(asked.model, speculative_config=speculation, max_num_seqs=2, max_model_len=1024, **options)
    params = SamplingParams(temperature=0.0, max_tokens=asked.tokens, ignore_eos=True)
    prompt = list(range(20, 84))

    def answer(speculate: bool) -> tuple[float, RequestOutput]:
        started = time.perf_counter()
        (found,) = llm.generate([prompt], params, speculate=speculate)
        return time.perf_counter() - started - (found.metrics.time_to_first_token or 0.0), found

    _, plain = answer(False)
    TEXTS[tuple(prompt)] = plain.outputs[0].token_ids
    answer(True)
    seconds: dict[str, list[float]] = {"plain": [], "replay": []}
    steps: list[float] = []
    for number in range(asked.pairs):
        for name in ("plain", "replay") if number % 2 else ("replay", "plain"):
            spent, found = answer(name == "replay")
            if found.outputs[0].token_ids != plain.outputs[0].token_ids:
                raise RuntimeError("speculation changed the text")
            seconds[name].append(spent)
            if name == "replay":
                steps.append(found.metrics.mean_acceptance_length)
    save(asked, seconds, steps)


if __name__ == "__main__":
    main()
