"""Measures what a token costs outside native calls, and its share of all; writes raw JSON.

A step may be several passes or rounds, so that its cost is shared by many tokens: figures are per token. It is the
processor time of the engine's thread, lest other work on the machine counts. Each side is a checkout in a process of
its own; the sides take turns, case by case.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from paceline import LLM, SamplingParams
from paceline.engine.loop import EngineLoop
from paceline.engine.pair import EMBEDDED_SPECULATION
from paceline.kernels.native import region

SPECULATION: dict[str, dict[str, Any] | None] = {
    "off": None,
    "draft_model": {"method": "draft_model", "num_speculative_tokens": 3},
    "ngram": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "prompt_lookup_max": 3},
}
BATCHES = (1, 8, 64)
PARTS = {
    "plan": "engine.scheduler.plan",
    "replay": "engine.computation.graphs.replay",
    "propose": "engine.proposer.propose",
    "verify": "engine.verifier.verify",
    "compute (rest)": "engine.computation.run",
    "observe": "engine.proposer.observe",
    "commit (rest)": "engine.committing.commit",
    "pacer": "engine.pacer.record",
    "step (rest)": "engine.step",
    "loop (rest)": "loop._step",
}


class Stopwatch:
    """Adds up the time of each part without the parts called in it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner, self._started = [0.0], 0.0

    def start(self) -> None:
        """A native call begins."""
        self._inner.append(0.0)
        self._started = time.thread_time()

    def stop(self) -> None:
        took = time.thread_time() - self._started
        self.seconds["native"] = self.seconds.get("native", 0.0) + took - self._inner.pop()
        self._inner[-1] += took

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            self._inner.append(0.0)
            started = time.thread_time()
            try:
                return call(*arguments, **options)
            finally:
                took = time.thread_time() - started
                self.seconds[name] = self.seconds.get(name, 0.0) + took - self._inner.pop()
                self._inner[-1] += took

        return timed


def engine_loop(case: dict[str, Any]) -> Any:
    """An engine, and a loop around it."""
    torch.set_num_threads(case["threads"])
    speculation = SPECULATION[case["speculation"]]
    if case["speculation"] == "draft_model":
        speculation = {**EMBEDDED_SPECULATION, **(speculation or {})}
    options = {"max_num_seqs": 64, "max_model_len": 1024, "enable_prefix_caching": False, **case["options"]}
    return EngineLoop(LLM(case["model"], speculative_config=speculation, **options))


def begin(loop: Any, batch: int, text: bool) -> list[Any]:
    """Seats requests and feeds their prompts."""
    params = SamplingParams(temperature=0.0, max_tokens=900, ignore_eos=True, detokenize=text)
    groups = [
        loop.llm.input_processor.group([100 + (7 * one + i) % 50 for i in range(48)], params) for one in range(batch)
    ]
    for group in groups:
        loop._begin(group, lambda _: None)
    for _ in range(12):
        loop._step()
    return groups


def watched(loop: Any, watch: Stopwatch, *, parts: bool) -> None:
    """Times steps as a whole, or their parts."""
    engine = loop.llm.engine
    for name, path in PARTS.items() if parts else [("engine", "engine.step"), ("loop", "loop._step")]:
        first, *middle, last = path.split(".")
        holder: Any = {"engine": engine, "loop": loop}[first]
        for step in middle:
            holder = getattr(holder, step, None)
        if hasattr(holder, last):
            setattr(holder, last, watch.around(name, getattr(holder, last)))


def block(loops: dict[str, Any], case: dict[str, Any]) -> dict[str, float]:
    """Microseconds a token of all requests together by part, over ``tokens`` of each, more or less."""
    name = f"{case['speculation']} {case['parts']}"
    if name not in loops:
        watch = Stopwatch()
        loops[name] = engine_loop(case), watch
        watched(loops[name][0], watch, parts=case["parts"])
    loop, watch = loops[name]
    groups = begin(loop, case["batch"], case["text"])
    watch.seconds.clear()
    region.watches.append(watch)
    counters = loop.llm.engine.counters
    before = counters.num_generated
    while counters.num_generated - before < case["tokens"] * case["batch"]:
        loop._step()
    region.watches.remove(watch)
    if any(group.finished for group in groups):
        raise RuntimeError("an answer ended before the block did: take fewer tokens")
    made = counters.num_generated - before
    found = {part: seconds / made * 1e6 for part, seconds in watch.seconds.items()}
    for group in groups:
        loop._abort(group.id)
    return found


def child() -> None:
    loops: dict[str, Any] = {}
    for line in sys.stdin:
        print(json.dumps(block(loops, json.loads(line))), flush=True)


def start(checkout: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, str(Path(__file__).resolve()), "--child"]
    return subprocess.Popen(
        command, env=environment, cwd=checkout, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def ask(process: subprocess.Popen[str], case: dict[str, Any]) -> dict[str, float]:
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("a side has no pipes")
    process.stdin.write(json.dumps(case) + "\n")
    process.stdin.flush()
    answer: dict[str, float] = json.loads(process.stdout.readline())
    return answer


def measure(sides: dict[str, Path], cases: list[dict[str, Any]], rounds: int) -> list[dict[str, Any]]:
    processes = {name: start(path) for name, path in sides.items()}
    records = []
    for case in cases:
        for process in processes.values():
            ask(process, {**case, "tokens": 100})
        for number in range(rounds):
            order = list(processes) if number % 2 else list(processes)[::-1]
            records += [{**case, "round": number, "side": side, "us": ask(processes[side], case)} for side in order]
        show(case, [record for record in records if record.items() >= case.items()])
    for process in processes.values():
        process.communicate()
    return records


def show(case: dict[str, Any], records: list[dict[str, Any]]) -> None:
    kind = f"{case['speculation']}, batch {case['batch']}{', text' if case['text'] else ''}"
    for side in dict.fromkeys(record["side"] for record in records):
        found = [record["us"] for record in records if record["side"] == side]
        parts = {part: statistics.median(one.get(part, 0.0) for one in found) for part in found[0]}
        outside = 1 - parts.get("native", 0.0) / sum(parts.values())
        costs = ", ".join(f"{part} {us:.0f}" for part, us in parts.items())
        print(f"{kind}: {side}: {costs}; {outside:.1%} outside native calls", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", action="append", metavar="NAME=CHECKOUT", help="default: this checkout")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=300, help="per request and block, at most 500")
    parser.add_argument("--parts", action="store_true", help="times each part, which costs time itself")
    parser.add_argument("--model", help="a directory or Hub id; by default the embedded target")
    parser.add_argument("--option", action="append", default=[], help="NAME=VALUE of the engine")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, action="append", help="requests at once; by default 1, 8 and 64")
    parser.add_argument("--speculation", action="append", choices=SPECULATION, help="default: each of them")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child()
        return
    here = Path(__file__).resolve().parent.parent
    sides = {name: Path(path) for name, _, path in (one.partition("=") for one in arguments.side or [f"this={here}"])}
    chosen = dict(text.split("=", 1) for text in arguments.option)
    engine = {"model": arguments.model, "options": chosen, "threads": arguments.threads}
    common = {"tokens": arguments.tokens, "parts": arguments.parts, **engine}
    cases = [
        {"speculation": speculation, "batch": batch, "text": text, **common}
        for speculation in arguments.speculation or SPECULATION
        for text in ((False, True) if speculation == "off" else (False,))
        for batch in arguments.batch or BATCHES
    ]
    records = measure(sides, cases, arguments.rounds)
    if arguments.out:
        machine = {"processor": _processor(), "python": platform.python_version()}
        arguments.out.write_text(json.dumps({"machine": machine, "unit": "us a token", "records": records}) + "\n")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
