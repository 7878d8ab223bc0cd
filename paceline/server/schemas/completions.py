"""Knows the body of ``POST /v1/completions``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PlainValidator, WithJsonSchema

from paceline.core.params import MAX_LOGPROBS, MAX_SAMPLES, SamplingParams
from paceline.server.schemas.base import refuse
from paceline.server.schemas.generation import (
    PromptEncoder,
    SamplingFields,
    StreamOptions,
    at_least,
    check_stream_options,
    count_schema,
)
from paceline.server.schemas.prompts import Prompt, as_prompts, prompts_schema

MAX_PROMPTS = 256
MAX_ANSWERS = 1024
"""Prompts times answers sampled for each."""
DEFAULT_MAX_TOKENS = 16
Samples = Annotated[int, Field(ge=1, le=MAX_SAMPLES)]
# 0 is for measuring a prompt: it is echoed, and nothing follows.
TokenCountOrZero = Annotated[int | None, at_least(0), count_schema(0)]


class CompletionRequest(SamplingFields):
    """``POST /v1/completions``: continues each of one or more prompts."""

    prompt: Annotated[
        list[Prompt], PlainValidator(as_prompts(MAX_PROMPTS)), WithJsonSchema(prompts_schema(MAX_PROMPTS))
    ]
    n: Samples | None = None
    best_of: Samples | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    max_tokens: TokenCountOrZero = None
    add_special_tokens: bool | None = None
    """False encodes a text without the special tokens that the tokenizer puts around it."""
    stream_options: StreamOptions | None = None

    def prompts(self, encoder: PromptEncoder) -> list[list[int]]:
        special = self.add_special_tokens is not False
        return [encoder.prompt(prompt, "prompt", add_special_tokens=special) for prompt in self.prompt]

    def params(self, default_max_tokens: int) -> SamplingParams:
        check_stream_options(self.stream_options, self.stream)
        samples = self.best_of or self.n or 1
        if self.stream and self.best_of is not None and self.best_of != (self.n or 1):
            refuse("best_of", "must equal n in a stream: which answers are best is known only at the end")
        if len(self.prompt) * samples > MAX_ANSWERS:
            refuse("n", f"times the number of prompts must be at most {MAX_ANSWERS}, got {len(self.prompt) * samples}")
        more: dict[str, Any] = {"n": self.n or 1, "best_of": self.best_of, "logprobs": self.logprobs}
        if self.echo and self.logprobs is not None:
            more["prompt_logprobs"] = self.logprobs
        if self.limit == 0:
            more["max_tokens"] = self._nothing_to_generate()
        # OpenAI's default is 16 here; no limit is as in chats.
        return self.sampling_params(DEFAULT_MAX_TOKENS if self.limit is None else default_max_tokens, **more)

    def _nothing_to_generate(self) -> int:
        """The engine generates at least one token, which is then dropped."""
        if not self.echo:
            refuse("max_tokens", "must be at least 1 unless echo is true, got 0")
        if self.min_tokens:
            refuse("min_tokens", f"must be at most max_tokens (0), got {self.min_tokens}")
        return 1
