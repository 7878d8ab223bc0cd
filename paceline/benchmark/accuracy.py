"""Knows how far a configuration's answers lie from another's: perplexity of a text, agreement of greedy choices."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from paceline.core.errors import ConfigError
from paceline.core.params import SamplingParams
from paceline.engine.llm import LLM

TokenIds = Sequence[int]


@dataclass(frozen=True, slots=True)
class Passages:
    """A text cut into windows that each fit the context.

    Windows begin every ``stride`` tokens; what lies in two of them counts in the first one only, so that with
    stride < window every token but those of the first window has at least ``window - stride`` tokens before it.
    """

    windows: Sequence[TokenIds]
    first_scored: Sequence[int]
    """Per window, the first token that counts: never its very first, which nothing predicts."""

    @classmethod
    def of(cls, tokens: TokenIds, *, window: int, stride: int) -> Passages:
        """Raises ConfigError if the text or the window is too short for a single token to be predicted."""
        if window < 2 or not 1 <= stride <= window:
            raise ConfigError(f"windows of {window} tokens every {stride} cannot be\nSet --stride to 1 to --window.")
        if len(tokens) < 2:
            raise ConfigError(f"the text has {len(tokens)} tokens; at least 2 are needed\nGive a longer text.")
        again = max(1, window - stride)
        starts = [start for start in range(0, len(tokens) - 1, stride) if not start or start + again < len(tokens)]
        return cls(
            [tokens[start : start + window] for start in starts],
            [again if start else 1 for start in starts],
        )


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How surprised a model is by a text."""

    losses: Sequence[float]
    """Nats per scored token, in order."""

    @property
    def nats_per_token(self) -> float:
        return statistics.fmean(self.losses)

    @property
    def value(self) -> float:
        return math.exp(self.nats_per_token)


def perplexity(llm: LLM, passages: Passages) -> Perplexity:
    """Of the passages, through the engine as it is configured: its types, its cache, its kernels."""
    losses: list[float] = []
    for window, first in zip(passages.windows, passages.first_scored, strict=True):
        losses += [-logprob for logprob, _ in scored(llm, window)[first:]]
    return Perplexity(losses)


def scored(llm: LLM, tokens: TokenIds) -> list[tuple[float, int]]:
    """(log-probability, rank) of each token given those before it; (0, 0) for the first."""
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
    (output,) = llm.generate([list(tokens)], params)
    assert output.prompt_logprobs is not None
    return [(0.0, 0) if one is None else (one.logprob, one.rank) for one in output.prompt_logprobs]


def loss_difference(subject: Perplexity, reference: Perplexity) -> tuple[float, float]:
    """Nats per token by which the subject is worse, and the standard error of that, token by token."""
    differences = [a - b for a, b in zip(subject.losses, reference.losses, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
    return statistics.fmean(differences), error


@dataclass(frozen=True, slots=True)
class Written:
    """A prompt and the greedy answer to it."""

    prompt: TokenIds
    answer: TokenIds


def write_greedily(llm: LLM, prompts: Sequence[TokenIds], num_tokens: int) -> list[Written]:
    """Greedy answers of exactly ``num_tokens`` tokens, whatever speculation does."""
    params = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True, detokenize=False)
    outputs = llm.generate([list(prompt) for prompt in prompts], params)
    return [Written(prompt, one.outputs[0].token_ids) for prompt, one in zip(prompts, outputs, strict=True)]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How much of a reference's greedy answers a configuration would write too."""

    identical: float
    """Share of answers that are the same from first to last token."""
    same_before_difference: float
    """Mean number of tokens before the first that differs; a whole answer where none does."""
    next_token: float
    """Share of the reference's tokens that are this configuration's first choice too, given the same beginning."""
    num_answers: int
    num_tokens: int


def agreement(llm: LLM, reference: Sequence[Written]) -> Agreement:
    """Compares with a reference's answers, both written freely and token by token along the reference."""
    own = write_greedily(llm, [one.prompt for one in reference], max(len(one.answer) for one in reference))
    common = [_common(mine.answer, theirs.answer) for mine, theirs in zip(own, reference, strict=True)]
    ranks = [rank for one in reference for _, rank in scored(llm, [*one.prompt, *one.answer])[len(one.prompt) :]]
    return Agreement(
        identical=statistics.fmean(n == len(one.answer) for n, one in zip(common, reference, strict=True)),
        same_before_difference=statistics.fmean(common),
        next_token=statistics.fmean(rank == 1 for rank in ranks),
        num_answers=len(reference),
        num_tokens=len(ranks),
    )


def _common(left: TokenIds, right: TokenIds) -> int:
    pairs = enumerate(zip(left, right, strict=True))
    return next((place for place, (a, b) in pairs if a != b), len(left))
