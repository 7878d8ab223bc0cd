"""Hugging Face transformers: ``generate``, greedy, plain or assisted by a draft model or by the prompt's n-grams.

Settings: dtype; assistant (a directory) or prompt_lookup_num_tokens; compile is left off, as it is by default.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM


class Times(transformers.StoppingCriteria):
    """Asked once after every step: notes when it was, and how long the sequences were."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, int]] = []

    def __call__(self, input_ids: Any, *_: Any, **__: Any) -> Any:
        self.steps.append((time.perf_counter(), int(input_ids.shape[1])))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class TransformersEngine:
    def __init__(self, model: str, settings: dict[str, Any]) -> None:
        dtype = getattr(torch, settings.get("dtype", "float32"))
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, local_files_only=True).eval()
        self.options: dict[str, Any] = {}
        if "assistant" in settings:
            draft = AutoModelForCausalLM.from_pretrained(settings["assistant"], dtype=dtype, local_files_only=True)
            self.options["assistant_model"] = draft.eval()
        if "prompt_lookup_num_tokens" in settings:
            self.options["prompt_lookup_num_tokens"] = settings["prompt_lookup_num_tokens"]
        self.versions = {"transformers": transformers.__version__, "torch": torch.__version__}

    def generate(self, prompts: list[list[int]], max_tokens: int) -> tuple[list[list[int]], list[tuple[float, int]]]:
        """Answers of exactly ``max_tokens``, and (time, tokens of each answer so far) after every step."""
        if self.options:  # assisted generation takes one sequence at a time
            answers, steps, before = [], [], 0
            for prompt in prompts:
                (answer,), times = self._generate([prompt], max_tokens)
                answers.append(answer)
                steps += [(at, before + count) for at, count in times]
                before += len(answer)
            return answers, steps
        return self._generate(prompts, max_tokens)

    def _generate(self, prompts: list[list[int]], max_tokens: int) -> tuple[list[list[int]], list[tuple[float, int]]]:
        longest, times = max(map(len, prompts)), Times()
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=max_tokens,
                min_new_tokens=max_tokens,
                eos_token_id=None,
                pad_token_id=0,
                stopping_criteria=transformers.StoppingCriteriaList([times]),
                **self.options,
            )
        answers = [row[longest : longest + max_tokens].tolist() for row in output]
        return answers, [(at, min(length - longest, max_tokens)) for at, length in times.steps]


def load(model: str, threads: int, settings: dict[str, Any]) -> TransformersEngine:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    return TransformersEngine(model, settings)
