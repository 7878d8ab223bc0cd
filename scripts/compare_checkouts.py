"""Compares how fast checkouts decode, each in a process of its own, in turn; writes raw JSON.

Wall time of a block of steps after the prompts, for plain decoding and for drafts, at several batch sizes. Beside the
speed stands the processor time that the engine's thread spends outside native calls, as a share of all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from paceline import LLM, SamplingParams
from paceline.benchmark.environment import environment
from paceline.benchmark.statistics import paired_ratio
from paceline.engine.pair import EMBEDDED_SPECULATION
from paceline.kernels.native import region


class Outside:
    """Processor time in native calls, on the thread that makes them."""

    def __init__(self) -> None:
        self.seconds = self._started = 0.0

    def start(self) -> None:
        self._started = time.thread_time()

    def stop(self) -> None:
        self.seconds += time.thread_time() - self._started


def built(case: dict[str, Any]) -> LLM:
    speculation: Any = {
        "off": None,
        "draft_model": {**EMBEDDED_SPECULATION, "num_speculative_tokens": case["depth"]},
        "ngram": {"method": "ngram", "num_speculative_tokens": case["depth"], "prompt_lookup_min": 1},
    }[case["speculation"]]
    options = {"max_num_seqs": 64, "max_model_len": 1024, "num_blocks": 4200, "enable_prefix_caching": False}
    return LLM(case["model"], speculative_config=speculation, **{**options, **case["options"]})


def block(llms: dict[str, Any], case: dict[str, Any]) -> dict[str, float]:
    """Tokens a second of all requests together, and the share of time outside native calls."""
    torch.set_num_threads(case["threads"])
    key = json.dumps([case[name] for name in ("model", "speculation", "depth", "options")])
    if key not in llms:
        llms.clear()
        llms[key] = built(case)
    llm = llms[key]
    engine, params = llm.engine, SamplingParams(temperature=0.0, max_tokens=900, ignore_eos=True, detokenize=False)
    groups = [
        llm.input_processor.group([100 + (7 * one + i) % 50 for i in range(48)], params) for one in range(case["batch"])
    ]
    for group in groups:
        engine.add(group)
    while min(len(member.output_token_ids) for group in groups for member in group.members) < 12:
        engine.step()  # prompts are read, and how long steps take is known
    watch, before = Outside(), engine.counters.num_generated
    region.watches.append(watch)
    wall, processor = time.perf_counter(), time.thread_time()
    while engine.counters.num_generated - before < case["tokens"] * case["batch"]:
        engine.step()
    wall, processor = time.perf_counter() - wall, time.thread_time() - processor
    region.watches.remove(watch)
    made = engine.counters.num_generated - before
    for group in groups:
        engine.abort(group)
    return {"tokens_per_second": made / wall, "outside": 1 - watch.seconds / processor}


def child() -> None:
    llms: dict[str, Any] = {}
    for line in sys.stdin:
        print(json.dumps(block(llms, json.loads(line))), flush=True)


class Checkout:
    """A process that runs one checkout."""

    def __init__(self, path: Path, threads: int) -> None:
        variables = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--child"],
            env=variables,
            cwd=path,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def ask(self, case: dict[str, Any]) -> dict[str, float]:
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("a side has no pipes")
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        found: dict[str, float] = json.loads(self._process.stdout.readline())
        return found

    def end(self) -> None:
        self._process.communicate()


def compared(sides: dict[str, Checkout], case: dict[str, Any], rounds: int) -> dict[str, Any]:
    for side in sides.values():
        side.ask({**case, "tokens": 24})
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides) if number % 2 else list(sides)[::-1]:
            found[name].append(sides[name].ask(case))
    first, *others = sides
    speeds = {name: [one["tokens_per_second"] for one in blocks] for name, blocks in found.items()}
    text = f"{case['label']} {case['speculation']} batch {case['batch']}: "
    for name in others:
        ratio = paired_ratio(speeds[name], speeds[first], lower_is_better=False, seed=0)
        text += f"{name} {ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] of {first} "
    outside = {name: statistics.median(one["outside"] for one in blocks) for name, blocks in found.items()}
    shares = ", ".join(f"{name} {statistics.median(speeds[name]):.0f}/s {outside[name]:.1%} outside" for name in sides)
    print(f"{text}({shares})", flush=True)
    return {**case, "model": case["label"], "blocks": found}  # no place of this machine


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", action="append", metavar="NAME=CHECKOUT", help="the first is compared with")
    parser.add_argument("--model", action="append", help="LABEL=DIRECTORY; default: the embedded target")
    parser.add_argument("--option", action="append", default=[], help="NAME=VALUE of the engine")
    parser.add_argument("--speculation", action="append", choices=("off", "draft_model", "ngram"))
    parser.add_argument("--batch", action="append", type=int)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64, help="per request and block")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def cases(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """What both sides are asked: models x speculation x batch sizes."""
    options = dict(text.split("=", 1) for text in asked.option)
    return [
        {
            "label": label,
            "model": path or None,
            "speculation": speculation,
            "batch": batch,
            "depth": asked.depth,
            "tokens": asked.tokens if batch < 64 else max(8, asked.tokens // 4),
            "options": options,
            "threads": asked.threads,
        }
        for label, _, path in (text.partition("=") for text in asked.model or ["pair="])
        for speculation in asked.speculation or ("off", "draft_model")
        for batch in asked.batch or (1, 8, 64)
    ]


def main() -> None:
    asked = arguments()
    if asked.child:
        child()
        return
    sides = {
        name: Checkout(Path(path).resolve(), asked.threads)
        for name, _, path in (text.partition("=") for text in asked.side)
    }
    records = [compared(sides, case, asked.rounds) for case in cases(asked)]
    for side in sides.values():
        side.end()
    if asked.out:
        asked.out.write_text(json.dumps({"environment": environment(), "records": records}) + "\n")


if __name__ == "__main__":
    main()
