"""How often drafts for the embedded target stand, on fixed questions; the figures are committed.

``python3 -m tests.support.acceptance`` measures and writes docs/results/acceptance-of-the-pair.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paceline import LLM, SamplingParams
from paceline.engine.pair import EMBEDDED, EMBEDDED_DRAFT
from paceline.kernels.native import library

COMMITTED = Path(__file__).resolve().parents[2] / "docs" / "results" / "acceptance-of-the-pair.json"
HEADS = EMBEDDED / "heads"
MAX_TOKENS = 40
QUESTIONS = (
    "Can you find a movie for me with Shayn Solberg?",
    "I want to book a table for four people in San Jose tomorrow at 7 pm.",
    "I need a bus from Fresno to Los Angeles on March 3rd, and then one back from Los Angeles to Fresno.",
    "Tom has 12 apples and buys 30 more. How many apples does he have?",
    "Repeat after me: one two three four five six seven, one two three four five six seven.",
    "Is it going to rain in Phoenix this weekend?",
)
SAMPLING: dict[str, dict[str, Any]] = {"greedy": {"temperature": 0.0}, "0.7": {"temperature": 0.7, "seed": 7}}
DRAFT = {"method": "draft_model", "model": str(EMBEDDED_DRAFT)}
METHODS: dict[str, dict[str, Any]] = {
    "ngram": {"method": "ngram"},
    "suffix": {"method": "suffix", "num_speculative_tokens": 8},
    "draft_model": DRAFT,
    "draft_model tree": {**DRAFT, "draft_top_k": 3, "draft_max_nodes": 8},
    **{name: {"method": name, "model": str(HEADS / name)} for name in ("eagle3", "mtp", "medusa", "dflash")},
}


def there(method: str) -> bool:
    """Whether the package holds what the method drafts with."""
    model = METHODS[method].get("model")
    return model is None or Path(model).is_dir()


def measure(method: str, sampling: str) -> dict[str, int]:
    """Drafted, accepted and all tokens, and the target's passes: one question at a time, in a new engine."""
    params = SamplingParams(max_tokens=MAX_TOKENS, ignore_eos=True, **SAMPLING[sampling])
    with LLM(speculative_config=METHODS[method], max_model_len=256, max_num_seqs=1, device="cpu") as llm:
        for question in QUESTIONS:
            llm.chat([{"role": "user", "content": question}], params)
        found = llm.engine.counters
        passes = found.num_generated - found.num_accepted
        figures = (found.num_drafted, found.num_accepted, found.num_generated, passes)
        return dict(zip(("drafted", "accepted", "tokens", "passes"), figures, strict=True))


def measured() -> dict[str, Any]:
    """Figures of every method that the package can draft with, at the level that is chosen."""
    return {name: {sampling: measure(name, sampling) for sampling in SAMPLING} for name in METHODS if there(name)}


def measured_at_every_level() -> dict[str, Any]:
    """Of this machine."""
    found = {}
    for level in library.levels():
        library.select(level)
        found[level] = measured()
    library.reload()
    return {"max_tokens": MAX_TOKENS, "questions": QUESTIONS, "levels": found}


if __name__ == "__main__":
    COMMITTED.write_text(json.dumps(measured_at_every_level(), indent=1) + "\n", encoding="utf-8")
