"""One sequence being generated, and the group of sequences that one call asked for."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from paceline.core.outputs import TokenLogprobs
from paceline.core.params import SamplingParams


class FinishReason(StrEnum):
    STOP = "stop"
    """End-of-sequence token, stop token or stop string."""
    LENGTH = "length"
    """max_tokens, or the model's context is full."""
    ABORT = "abort"
    ERROR = "error"


class TextSink(Protocol):
    """Sees each output token as it is accepted; the text room's stop strings plug in here."""

    def push(self, token: int) -> bool:
        """Takes one token; true if a stop string is now complete."""
        ...

    def restart(self, tokens: Sequence[int]) -> None:
        """Starts over with these output tokens, the first of those that it was given."""
        ...


@dataclass(slots=True)
class Comparison:
    """Time that decoding took, and what plain decoding would have taken, in seconds."""

    step_seconds: float = 0.0
    plain_seconds: float = 0.0
    complete: bool = True
    """False once a step had nothing to be compared with."""


@dataclass(slots=True, eq=False)
class Request:
    """Tokens known so far and how to continue them.

    What is cached, and in which pages, is kept per layer group in the cache room under the request's seat.
    """

    id: str
    group: Group
    sample_index: int
    seed: int
    """The noise key; resolved, never None."""
    eos_token_ids: frozenset[int]
    max_new_tokens: int
    """max_tokens, or what context and cache leave."""
    detokenizer: TextSink | None = None
    output_token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    cumulative_logprob: float = 0.0
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: str | None = None
    seat: int = -1
    """Row in the step's arrays while running, else -1."""
    num_drafted: int = 0
    num_accepted: int = 0
    num_decode_steps: int = 0
    """Steps that gave this request at least one token; passes and rounds that one step chained count one by one."""
    num_preemptions: int = 0
    num_cached_tokens: int = 0
    """Prompt tokens that the prefix cache saved on the way to the first output token."""
    num_looked_up: int = 0
    """Tokens that were looked up in the prefix index for that."""
    counted: bool = False
    """Whether this lookup is among the engine's figures."""
    num_dropped: int = 0
    """Oldest tokens that have left the window of a sliding context."""
    num_slides: int = 0
    """How often the window moved on."""
    token_times: list[float] = field(default_factory=list)
    """time.monotonic() at which each output token was accepted."""
    token_drafted: list[bool] = field(default_factory=list)
    """True where the output token was an accepted draft token."""
    comparison: Comparison = field(default_factory=Comparison)

    @property
    def params(self) -> SamplingParams:
        return self.group.params

    @property
    def prompt_token_ids(self) -> list[int]:
        return self.group.prompt_token_ids

    @property
    def num_tokens(self) -> int:
        return len(self.group.prompt_token_ids) + len(self.output_token_ids)

    @property
    def longest(self) -> int:
        """Most tokens that the model may come to see at once."""
        whole = len(self.group.prompt_token_ids) + self.max_new_tokens
        return whole if self.group.sliding_context is None else min(whole, self.group.sliding_context)

    @property
    def window(self) -> list[int]:
        """The known tokens that the model sees: all but the dropped ones."""
        prompt, output = self.group.prompt_token_ids, self.output_token_ids
        return prompt[self.num_dropped :] + output[max(0, self.num_dropped - len(prompt)) :]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end it, once it has ``min_tokens``."""
        return (*self.eos_token_ids, *self.group.params.stop_token_ids)

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def slide(self) -> bool:
        """Drops the oldest tokens of a full window, so that half a context is left; true if it was full.

        What is dropped when is a function of the number of tokens alone, never of how they came to be known.
        """
        context = self.group.sliding_context
        if context is None or self.num_tokens - self.num_dropped < context:
            return False
        step = context - context // 2
        count = (self.num_tokens - self.num_dropped - context) // step + 1
        self.num_dropped += count * step
        self.num_slides += count
        return True

    @property
    def keeps_logprobs(self) -> bool:
        """Whether each output token has its log-probability."""
        return self.params.logprobs is not None or self.params.best_of is not None

    def roll_back(self) -> None:
        """Takes back what a step gave in part before an exception cut it short; the repeated step gives the same.

        A token counts once everything about it was noted; ``token_drafted`` is what is noted last.
        """
        noted: list[list[Any]] = [self.output_token_ids, self.token_times, self.token_drafted]
        noted += [self.logprobs] if self.keeps_logprobs else []
        count = min(map(len, noted))
        if self.group.pooled is not None and self.group.pooled.embedding is not None:
            self.finish_reason = self.finish_reason or FinishReason.STOP
        if count < max(map(len, noted)):
            if self.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
                self.finish_reason = self.stop_reason = None
            self.cumulative_logprob = sum(entry.logprob for entry in self.logprobs[:count])
            if self.detokenizer is not None:
                self.detokenizer.restart(self.output_token_ids[:count])
            for part in noted:
                del part[count:]

    def accept(self, tokens: list[int]) -> int:
        """Appends tokens until one of them ends the request; returns how many were kept."""
        params, output, detokenizer = self.group.params, self.output_token_ids, self.detokenizer
        for count, token in enumerate(tokens, 1):
            output.append(token)
            # The detokenizer sees every token, also those before min_tokens, so that its text stays whole.
            ends = detokenizer.push(token) if detokenizer is not None else False
            length = len(output)
            if length >= params.min_tokens:
                if token in params.stop_token_ids and token not in self.eos_token_ids:
                    self.stop_reason, ends = token, True
                if ends or token in self.eos_token_ids:
                    self.finish_reason = FinishReason.STOP
                    return count
            if length >= self.max_new_tokens:
                self.finish_reason = FinishReason.LENGTH
                return count
        return len(tokens)


@dataclass(slots=True)
class Pooled:
    """The sum of a prompt's hidden states from some row on, as far as it is computed."""

    next_row: int
    """The prompt token whose hidden state is added next."""
    total: npt.NDArray[np.float64] | None = None  # [D]
    embedding: list[float] | None = None


@dataclass(slots=True, eq=False)
class Group:
    """The members that one call asked for (``n`` or ``best_of`` of them); they share the prompt and its pages."""

    id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    prompt: str | None = None
    members: list[Request] = field(default_factory=list)
    arrival: float = field(default_factory=time.monotonic)
    priority: int = 0
    client: str = ""
    part_of: str = ""
    """What several groups have in common that one call asked for; "" where the group is all that was asked for."""
    cache_salt: str = ""
    """Prefixes are shared only between calls with the same salt."""
    regimes: tuple[int, ...] = ()
    """What the rotary embeddings of target and drafter go by, where the longest text that may come decides it."""
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()
    """Token sequences that spell a bad word of the parameters; whoever has the tokenizer fills it in."""
    speculate: bool = True
    """False decodes plainly; whoever has a reason to stop drafting for these requests clears it, for good."""
    num_truncated_tokens: int = 0
    """Oldest prompt tokens that were cut off before anything began."""
    sliding_context: int | None = None
    """A window of this many tokens is full and drops its older half; None: nothing is ever dropped."""
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    pooled: Pooled | None = None
    """Of a call that asks for an embedding: it generates nothing."""
    seated_at: float | None = None
    """time.monotonic() at which a member first got a seat."""

    @property
    def call(self) -> Hashable:
        """The call that this came with, alone or as one of several."""
        return self.part_of or self

    @property
    def finished(self) -> bool:
        return all(member.finished for member in self.members)

    @property
    def needs_prompt_rows(self) -> bool:
        """Whether something is made of rows of the prompt."""
        return self.params.prompt_logprobs is not None or self.pooled is not None

    @property
    def prefix_salt(self) -> str:
        """Calls share prefixes only if they have the same value here."""
        return f"{self.regimes}{self.cache_salt}"
