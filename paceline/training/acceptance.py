"""Knows how often the engine accepts a draft's tokens, position by position, while it answers unseen prompts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from paceline.core.params import SamplingParams
from paceline.core.request import Request
from paceline.engine.llm import LLM
from paceline.engine.stats import Counters
from paceline.training.data import ChatFormat, Document
from paceline.training.held_out import repeated_share
from paceline.training.options import MeasureOptions
from paceline.training.stream import encode, marker_ids
from paceline.training.tokenizer import load_tokenizer

NUM_SPECULATIVE_TOKENS = 4
TEMPERATURES = {"greedy": 0.0, "temperature_0.7": 0.7}
OPENING_TOKENS = 32
"""How much of a piece of plain text is a prompt."""


@dataclass(slots=True)
class PositionCounters(Counters):
    """Counters that also tell how many drafts reached each depth; near the end of a reply drafts are shorter."""

    drafted_per_position: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        # Named: a slotted dataclass is made anew, and super() would still mean the class before.
        Counters.__post_init__(self)
        self.drafted_per_position = np.zeros(self.max_depth, dtype=np.int64)

    def record(self, request: Request, num_nodes: int, num_accepted: int, num_kept: int, now: float) -> None:
        Counters.record(self, request, num_nodes, num_accepted, num_kept, now)
        self.drafted_per_position[:num_nodes] += 1


def prompts_of(
    documents: Sequence[Document], tokenizer: Tokenizer, chat: ChatFormat, *, count: int, room: int, seed: int
) -> list[list[int]]:
    """Up to ``count`` prompts of at most ``room`` tokens: dialogues up to a reply, and beginnings of plain text."""
    source = random.Random(f"prompts {seed}")
    prompts: list[list[int]] = []
    for document in source.sample(documents, len(documents)):
        if len(prompts) == count:
            break
        prompt = _prompt_of(document, tokenizer, chat, room, source)
        if prompt is not None:
            prompts.append(prompt)
    return prompts


def _prompt_of(
    document: Document, tokenizer: Tokenizer, chat: ChatFormat, room: int, source: random.Random
) -> list[int] | None:
    if document[0].role is None:
        opening = encode([document], tokenizer, chat).tokens[:OPENING_TOKENS].tolist()
        return opening if len(opening) <= room else None
    places = [place for place, turn in enumerate(document) if place and turn.role == "assistant"]
    if not places:
        return None
    place = source.choice(places)
    tokens = encode([document[:place]], tokenizer, chat).tokens.tolist()
    tokens.append(marker_ids(tokenizer, chat)[chat.role("assistant")])
    return tokens if len(tokens) <= room else None


def answered(
    target: Path, draft: Path | None, documents: Sequence[Document], chat: ChatFormat, options: MeasureOptions
) -> dict[str, Any]:
    """Answers prompts greedily and at 0.7, with the draft if there is one; end-of-sequence ends an answer.

    Returns, for either: ``repeated_4grams`` and, with a draft, the acceptance.
    """
    tokenizer = load_tokenizer(target)
    speculative = {"method": "draft_model", "model": str(draft), "num_speculative_tokens": NUM_SPECULATIVE_TOKENS}
    llm = LLM(str(target), speculative_config=speculative if draft else None, device=options.device)
    longest = min(options.eval_tokens, llm.max_model_len // 2)
    room = llm.max_model_len - longest
    prompts = prompts_of(documents, tokenizer, chat, count=options.eval_prompts, room=room, seed=options.seed)
    if not prompts:
        return {}
    results = {}
    for name, temperature in TEMPERATURES.items():
        counters = llm.engine.counters = PositionCounters(llm.engine.counters.max_depth)
        params = [
            SamplingParams(temperature=temperature, max_tokens=longest, seed=options.seed + number, detokenize=False)
            for number in range(len(prompts))
        ]
        outputs = llm.generate(prompts, params)
        replies = [output.outputs[0].token_ids for output in outputs]
        ended = sum(output.outputs[0].finish_reason == "stop" for output in outputs)
        results[name] = {
            "prompts": len(prompts),
            "tokens": sum(map(len, replies)),
            "ended_by_model": ended,
            "repeated_4grams": repeated_share(replies),
            **(_acceptance(counters) if draft else {}),
        }
    return results


def _acceptance(counters: PositionCounters) -> dict[str, Any]:
    accepted, drafted = counters.accepted_per_position, counters.drafted_per_position
    return {
        "accepted_per_position": accepted.tolist(),
        "drafted_per_position": drafted.tolist(),
        "acceptance_per_position": [
            round(int(a) / int(d), 4) if d else None for a, d in zip(accepted, drafted, strict=True)
        ],
        "acceptance": counters.num_accepted / counters.num_drafted if counters.num_drafted else None,
        "accepted_per_draft": counters.num_accepted / counters.num_drafts if counters.num_drafts else None,
    }
