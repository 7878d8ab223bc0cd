"""Knows what one part of the comparison asks of every side: a batch that decodes, or a prompt that is read."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.measure_peers.checkpoints import SHAPES

DECODE, PREFILL = "decode_tokens_per_second", "prompt_tokens_per_second"
PARTS = ("batch 1", "batch 8", "prefill")
OUTPUT = {"S": 256, "M": 64}
"""Tokens per answer: a trial takes about as long on either shape."""
QUICK_OUTPUT = {"S": 96, "M": 24}
PROMPT, RAGGED, PREFILLED = 64, range(16, 128, 14), 512
"""Prompt tokens of a single request, of each of a batch of eight, and of the prompt that is only read."""
FIRST_PLAIN = 16
"""Lower token ids may be markers."""


@dataclass(frozen=True, slots=True)
class Part:
    """One column of the table."""

    shape: str
    name: str
    prompts: Sequence[Sequence[int]]
    max_tokens: int
    metric: str

    @property
    def title(self) -> str:
        return f"{self.shape} {self.name}"

    def parameters(self) -> dict[str, object]:
        lengths = [len(prompt) for prompt in self.prompts]
        return {"shape": self.shape, "prompt_lengths": lengths, "max_tokens": self.max_tokens, "metric": self.metric}


def part(shape: str, name: str, *, quick: bool, seed: int) -> Part:
    """Random prompts; the same for the same seed, shape and name."""
    lengths = {"batch 1": [PROMPT], "batch 8": list(RAGGED), "prefill": [PREFILLED]}[name]
    draw = random.Random(f"{seed} {shape} {name}")
    vocabulary = range(FIRST_PLAIN, SHAPES[shape].vocab_size)
    prompts = [draw.choices(vocabulary, k=length) for length in lengths]
    if name == "prefill":
        return Part(shape, name, prompts, 1, PREFILL)
    return Part(shape, name, prompts, (QUICK_OUTPUT if quick else OUTPUT)[shape], DECODE)
