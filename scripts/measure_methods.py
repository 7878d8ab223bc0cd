"""Measures every way of drafting on the embedded target beside plain decoding, in turn; writes raw JSON.

Of each setting: decoding time after the first token in pairs with an engine without drafts, tokens per step, nodes per
draft, and how many nodes of a draft stood. Texts must be equal. A setting whose files are not there is left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from paceline import LLM, SamplingParams
from paceline.benchmark.environment import environment
from paceline.benchmark.statistics import paired_ratio
from paceline.engine.conversations import conversation
from paceline.engine.pair import EMBEDDED, EMBEDDED_DRAFT

QUESTIONS = Path(__file__).parent / "pair" / "questions.json"
HEADS = EMBEDDED / "heads"
MODEL = {"model": str(EMBEDDED_DRAFT)}
PASSAGE = (
    "The train to Oakland leaves at 10:15 in the morning from platform four, and the fare is 23 dollars. The hotel is "
    "called Blue Harbor Inn, it has 31 rooms, and breakfast is served from seven to ten. Please call 510-555-0142 to "
    "confirm the booking for three people on the 8th of March. "
)


def head(method: str, **more: Any) -> dict[str, Any]:
    return {"method": method, "model": str(HEADS / method), **more}


SETTINGS: Mapping[str, dict[str, Any]] = {
    **{f"draft_model {k}": {"method": "draft_model", **MODEL, "num_speculative_tokens": k} for k in (2, 3, 4)},
    "draft_model tree 2x3": {
        "method": "draft_model", **MODEL, "num_speculative_tokens": 3, "draft_top_k": 2, "draft_max_nodes": 4,
    },
    "ngram 4": {"method": "ngram", "num_speculative_tokens": 4},
    "suffix 8": {"method": "suffix", "num_speculative_tokens": 8, "suffix_decoding_max_cached_requests": 0},
    "suffix 8, asked again": {"method": "suffix", "num_speculative_tokens": 8},
    "token_recycling 4": {"method": "token_recycling", "num_speculative_tokens": 3, "token_recycling_nodes": 4},
    "token_recycling 8": {"method": "token_recycling", "num_speculative_tokens": 4, "token_recycling_nodes": 8},
    "lookahead 3,3,3": {"method": "lookahead", "num_speculative_tokens": 4},
    **{f"eagle3 {k}": head("eagle3", num_speculative_tokens=k) for k in (2, 3, 4)},
    "eagle3 tree 2x3": head("eagle3", num_speculative_tokens=3, draft_top_k=2, draft_max_nodes=4),
    **{f"mtp {k}": head("mtp", num_speculative_tokens=k) for k in (2, 3)},
    "medusa 2": head("medusa", num_speculative_tokens=2),
    "medusa tree 2x3": head("medusa", num_speculative_tokens=3, draft_top_k=2, draft_max_nodes=4),
    "dflash 4": head("dflash", num_speculative_tokens=4),
    "early_exit 5 of 10, 2": {"method": "early_exit", "early_exit_layers": 5, "num_speculative_tokens": 2},
    "composite suffix + draft_model 4": {
        "method": "composite", **MODEL, "num_speculative_tokens": 4, "suffix_decoding_max_cached_requests": 0,
    },
}  # fmt: skip


def there(setting: Mapping[str, Any]) -> bool:
    return "model" not in setting or Path(setting["model"]).is_dir()


def prompts(llm: LLM, kind: str) -> list[list[int]]:
    if kind == "copying":
        words = PASSAGE.split()
        texts = [" ".join(words * 3 + words[: 5 + 7 * number]) for number in range(6)]
        return [llm.tokenizer.encode(text) for text in texts]
    dialogues = [item["messages"] for item in json.loads(QUESTIONS.read_text())["dialogues"]]
    return [llm.tokenizer.encode_chat(conversation(one), add_generation_prompt=True) for one in dialogues]


def answered(llm: LLM, asked: list[list[int]], params: SamplingParams) -> tuple[list[list[int]], float]:
    """Token ids of each answer, one call at a time, and the seconds after their first tokens."""
    texts, seconds = [], 0.0
    for prompt in asked:
        (found,) = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
        texts.append(found.outputs[0].token_ids)
        seconds += found.metrics.decode_time or 0.0
    return texts, seconds


def measured(plain: LLM, llm: LLM, asked: list[list[int]], params: SamplingParams, pairs: int) -> dict[str, Any]:
    """Pairs of plain decoding and drafting, which begins in turn."""
    seconds: dict[str, list[float]] = {"off": [], "on": []}
    for number in range(pairs + 1):
        texts = {}
        for name in ("off", "on") if number % 2 else ("on", "off"):
            if number == 1 and name == "on":
                llm.engine.counters = type(llm.engine.counters)(max_depth=llm.engine.scheduler.max_depth)
            texts[name], taken = answered(plain if name == "off" else llm, asked, params)
            if number:
                seconds[name].append(taken)
        if texts["off"] != texts["on"]:
            raise RuntimeError("drafting changed a text")
    counters = llm.engine.counters
    drafts = max(counters.num_drafts, 1)
    return {
        "seconds": seconds,
        "ratio": asdict(paired_ratio(seconds["on"], seconds["off"], lower_is_better=True, seed=0)),
        "tokens_per_step": 1 + counters.num_accepted / drafts,
        "nodes_per_draft": counters.num_drafted / drafts,
        "accepted_per_position": [count / drafts for count in counters.accepted_per_position],
        "eager_steps": dict(llm.engine.computation.eager_steps),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="settings whose names begin so")
    parser.add_argument("--temperatures", type=float, nargs="*", default=[0.0, 0.7])
    parser.add_argument("--quantization", choices=["int8", "int4"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    torch.set_num_threads(asked.threads)
    options: dict[str, Any] = {"max_num_seqs": 2, "num_blocks": 256, "quantization": asked.quantization}
    plain = LLM(speculative_config=None, **options)
    record: dict[str, Any] = {"environment": environment(), "settings": SETTINGS, "measured": {}}
    for name, setting in SETTINGS.items():
        if not there(setting) or (asked.only and not name.startswith(tuple(asked.only))):
            continue
        llm = LLM(speculative_config=setting, **options)
        for kind in ("dialogues", "copying"):
            for temperature in asked.temperatures:
                params = SamplingParams(temperature=temperature, seed=7, max_tokens=asked.tokens)
                found = measured(plain, llm, prompts(llm, kind), params, asked.pairs)
                record["measured"][f"{name} | {kind} | {temperature}"] = found
                ratio = found["ratio"]
                print(
                    f"{name:34} {kind:10} {temperature}: {ratio['median']:.2f} [{ratio['low']:.2f}, "
                    f"{ratio['high']:.2f}], {found['tokens_per_step']:.2f} tokens per step",
                    flush=True,
                )
        llm.close()
    asked.out.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
