"""Knows which shapes a run has: batch sizes and lengths crossed, or prompts of a file, checked against an engine."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from paceline.benchmark.in_process import Workload
from paceline.benchmark.workloads import (
    ChatDialogue,
    Dialogue,
    TextPrompt,
    TokenDialogue,
    fitted,
    plain_token_ids,
    shared_prefix,
    synthetic,
)
from paceline.core.errors import ConfigError
from paceline.engine.llm import LLM
from paceline.text import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What every trial asks."""

    batch_sizes: Sequence[int] = (1,)
    """Requests at the same time."""
    input_lengths: Sequence[int] | None = None
    """Exact prompt lengths; None takes a file's prompts as long as they are."""
    output_lengths: Sequence[int] = (128,)
    prompts: Sequence[TextPrompt] | None = None
    """None makes prompts from random tokens."""
    prefix_length: int = 0
    """Tokens that all random prompts begin with."""
    num_turns: int = 1
    temperature: float = 0.0
    seed: int = 0

    def parameters(self) -> dict[str, Any]:
        """For the record: everything, a file's prompts as their number and digest."""
        found = asdict(self)
        if self.prompts is not None:
            digest = hashlib.sha256(repr([asdict(one) for one in self.prompts]).encode()).hexdigest()
            found["prompts"] = {"count": len(self.prompts), "sha256": digest}
        return found


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What prompts for a model must respect."""

    tokenizer: Tokenizer | None
    vocab_size: int
    end_token_ids: frozenset[int]
    max_model_len: int
    max_num_seqs: int | None = None
    """Requests that run at the same time, where a batch must."""

    @classmethod
    def of(cls, llm: LLM, *, at_once: bool) -> ModelLimits:
        """``at_once``: every request of a batch runs at the same time; else the engine may queue them."""
        config = llm.engine.runner.model.config
        most = llm.engine.config.max_num_seqs if at_once else None
        return cls(llm.tokenizer, config.vocab_size, llm.input_processor.end_token_ids, llm.max_model_len, most)


def shapes(model: ModelLimits, asked: Asked) -> list[Workload]:
    """A shape per batch size, input length and output length.

    Raises:
        ConfigError: a shape that the engine cannot hold, with the option to change.
    """
    lengths = asked.input_lengths or (None,)
    found = []
    for size, length, output in itertools.product(asked.batch_sizes, lengths, asked.output_lengths):
        if model.max_num_seqs is not None and size > model.max_num_seqs:
            raise ConfigError(
                f"a batch of {size} does not fit max_num_seqs={model.max_num_seqs}\nAdd --max-num-seqs {size}."
            )
        dialogues = _source(model, asked, size, length)
        _check_lengths(model, dialogues(0), output)
        kind = _kind(asked, length)
        many = f"{size} requests" if model.max_num_seqs is None else f"batch {size}"
        parameters = {"batch_size": size, "input_length": length, "output_length": output}
        found.append(
            Workload(
                name=f"{many}, {kind}, output {output}",
                dialogues=dialogues,
                output_length=output,
                temperature=asked.temperature,
                parameters=parameters,
            )
        )
    return found


def _kind(asked: Asked, length: int | None) -> str:
    parts = [f"{asked.prefix_length} shared" if asked.prefix_length else ""]
    parts += [f"input {length}" if length else "prompts as they are"]
    parts += [f"{asked.num_turns} turns" if asked.num_turns > 1 else ""]
    return ", ".join(filter(None, parts))


def _source(model: ModelLimits, asked: Asked, size: int, length: int | None) -> Callable[[int], Sequence[Dialogue]]:
    """Pair number -> dialogues: random prompts are new in every pair, a file's are taken in turn."""
    if asked.prompts is not None:
        every = [_encoded(model, prompt, length) for prompt in asked.prompts]
        return lambda pair: [every[(max(pair, 0) * size + number) % len(every)] for number in range(size)]
    if length is None:
        raise ConfigError("there is no input length\nAdd --input-lens 128, or --prompts FILE.")
    vocabulary = plain_token_ids(model.vocab_size, model.tokenizer, model.end_token_ids)
    if not asked.prefix_length and asked.num_turns == 1:
        return lambda pair: synthetic(size, length, vocabulary=vocabulary, seed=asked.seed + pair)
    return lambda pair: shared_prefix(
        size, asked.prefix_length, length, asked.num_turns, vocabulary=vocabulary, seed=asked.seed + pair
    )


def _encoded(model: ModelLimits, prompt: TextPrompt, length: int | None) -> Dialogue:
    if model.tokenizer is None:
        raise ConfigError("the model has no tokenizer, so it cannot read prompts\nLeave --prompts out.")
    if prompt.chat and model.tokenizer.chat_template is not None:
        dialogue: Dialogue = ChatDialogue(model.tokenizer, prompt.turns, prompt.category)
        if length is None:
            return dialogue
        tokens = dialogue.prompt([])
    else:
        tokens = model.tokenizer.encode(prompt.turns[0])
    return TokenDialogue((tuple(fitted(tokens, length or len(tokens))),), prompt.category)


def _check_lengths(model: ModelLimits, dialogues: Sequence[Dialogue], output: int) -> None:
    for dialogue in dialogues:
        answers = [[0] * output] * (dialogue.num_turns - 1)
        longest = len(dialogue.prompt(answers)) + output
        if longest > model.max_model_len:
            raise ConfigError(
                f"prompt and answer of {longest} tokens do not fit the context of {model.max_model_len}\n"
                f"Set --output-lens to at most {model.max_model_len - longest + output}, or --input-lens lower."
            )
