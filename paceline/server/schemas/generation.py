"""Knows the fields of every endpoint that generates, and how they become parameters and options of a call."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from paceline.core.call import CallOptions
from paceline.core.errors import shown
from paceline.core.params import (
    INT32_MAX,
    INT64_MAX,
    MAX_BAD_WORD_LENGTH,
    MAX_LIST_LENGTH,
    MAX_STOP_LENGTH,
    MAX_STOP_STRINGS,
    SamplingParams,
)
from paceline.core.token_set import MAX_SET_TOKEN
from paceline.server.schemas.base import MAX_INT32, TOKEN_ID, Body, Finite, Strict, array, integer, number, refuse
from paceline.server.schemas.reading import FieldRules
from paceline.server.schemas.unsupported import IGNORED, OF_PROMPTS, OF_TEXT, TOOL_REASONS


class PromptEncoder(Protocol):
    """Turns what a body calls its prompt into token ids.

    Raises:
        InvalidRequestError: the model has no tokenizer or chat template, or the prompt is not one.
    """

    def chat(self, messages: list[dict[str, str]]) -> list[int]: ...

    def prompt(self, prompt: str | list[int], param: str, *, add_special_tokens: bool = True) -> list[int]: ...


class EngineRequest(Body, ABC):
    """A body that becomes calls of the engine, one per prompt."""

    stream: bool | None = None
    priority: Annotated[int | None, Field(ge=-MAX_INT32 - 1, le=MAX_INT32)] = None
    """With the scheduling policy "priority": lower numbers are served first."""
    context_overflow: Literal["error", "truncate", "slide"] | None = None
    """What becomes of a call that the context cannot hold; null is the server's option."""

    @abstractmethod
    def prompts(self, encoder: PromptEncoder) -> list[list[int]]:
        """Token ids of each prompt."""

    @abstractmethod
    def params(self, default_max_tokens: int) -> SamplingParams:
        """Raises InvalidRequestError: a value out of range, by field."""

    def options(self, client: str) -> CallOptions:
        """The salt keeps clients from learning, by timing, which prompts others have sent."""
        return CallOptions(
            priority=self.priority or 0, client=client, cache_salt=client, context_overflow=self.context_overflow
        )


_BIASED = "0|[1-9][0-9]{0,8}"
"""One spelling each, so that no token is named twice."""


def _token_map(bias: object) -> object:
    """JSON has only strings for keys; OpenAI writes token ids so."""
    if not isinstance(bias, dict):
        return bias
    if not all(isinstance(key, str) and re.fullmatch(_BIASED, key) for key in bias):
        raise ValueError("keys must be token ids without leading zeros")
    return {int(key): value for key, value in bias.items()}


_BIAS = WithJsonSchema(
    {
        "type": "object",
        "propertyNames": {"pattern": f"^({_BIASED})$"},
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        "maxProperties": MAX_LIST_LENGTH,
    }
)
_STOP = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_LENGTH}
_Stops = Annotated[list[str], WithJsonSchema(array(_STOP, most=MAX_STOP_STRINGS))]
_Tokens = Annotated[list[int], WithJsonSchema(array(TOKEN_ID, most=MAX_LIST_LENGTH))]
_SomeTokens = Annotated[list[int], WithJsonSchema(array(TOKEN_ID | {"maximum": MAX_SET_TOKEN}, least=1))]
_WORD = {"type": "string", "minLength": 1, "maxLength": MAX_BAD_WORD_LENGTH}
_Words = Annotated[list[str], WithJsonSchema(array(_WORD, most=MAX_LIST_LENGTH))]
NO_SEED = -1
"""As vLLM and llama.cpp read it."""
NO_LIMIT = -1
"""As llama.cpp and those who speak to it write it."""


def at_least(least: int) -> AfterValidator:
    """A limit of an answer's tokens in its range. It is checked where it is read: before two names are compared."""

    def check(count: int | None) -> int | None:
        if count is not None and count != NO_LIMIT and not least <= count <= INT32_MAX:
            raise ValueError(f"must be in [{least}, {INT32_MAX}], or {NO_LIMIT} for no limit, got {shown(count)}")
        return count

    return AfterValidator(check)


def count_schema(least: int) -> WithJsonSchema:
    """The same as JSON schema."""
    some = {"type": "integer", "minimum": least, "maximum": INT32_MAX}
    return WithJsonSchema({"anyOf": [some, {"const": NO_LIMIT, "description": "No limit."}, {"type": "null"}]})


TokenCount = Annotated[int | None, at_least(1), count_schema(1)]


class SamplingFields(EngineRequest):
    """Fields of every endpoint that generates; null is the default. Ranges are checked by ``SamplingParams``."""

    rules: ClassVar[FieldRules] = FieldRules(IGNORED, {**OF_TEXT, **OF_PROMPTS}, TOOL_REASONS)
    not_of_sampling: ClassVar[frozenset[str]] = frozenset(
        {"model", "max_completion_tokens", "speculation", "stream", "priority", "context_overflow"}
    )

    temperature: Annotated[Finite, number(0, 1e4)] | None = None
    top_p: Annotated[Finite, number(0, 1, above=True)] | None = None
    top_k: Annotated[int, integer(-1, INT64_MAX)] | None = None
    min_p: Annotated[Finite, number(0, 1)] | None = None
    presence_penalty: Annotated[Finite, number(-2, 2)] | None = None
    frequency_penalty: Annotated[Finite, number(-2, 2)] | None = None
    repetition_penalty: Annotated[Finite, number(0, 1e3, above=True)] | None = None
    logit_bias: Annotated[dict[int, Finite], BeforeValidator(_token_map), _BIAS] | None = None
    allowed_token_ids: _SomeTokens | None = None
    bad_words: _Words | None = None
    seed: Annotated[int, integer(-INT64_MAX - 1, INT64_MAX)] | None = None
    max_tokens: TokenCount = None
    max_completion_tokens: TokenCount = None
    min_tokens: Annotated[int, integer(0, INT32_MAX)] | None = None
    stop: Annotated[str, WithJsonSchema(_STOP)] | _Stops | None = None
    stop_token_ids: _Tokens | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    speculation: bool | None = None
    """False decodes this call plainly, to the same text under the verifier "match"."""

    @property
    def limit(self) -> int | None:
        """Tokens wanted for each answer: None if that is left open, ``NO_LIMIT`` for as many as there can be."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def sampling_params(self, default_max_tokens: int, **more: int | None) -> SamplingParams:
        """Raises InvalidRequestError: a value out of range, by field."""
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            refuse("max_tokens", "differs from max_completion_tokens; give one of them")
        limit = self.limit
        names = SamplingFields.model_fields.keys() - self.not_of_sampling
        given: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        unlimited = limit in (None, NO_LIMIT)
        if self.seed == NO_SEED:
            del given["seed"]
        given["max_tokens"] = max(default_max_tokens, self.min_tokens or 0) if unlimited else limit
        given.update(more)
        return SamplingParams(**given)

    def options(self, client: str) -> CallOptions:
        return replace(super().options(client), speculate=self.speculation is not False)


class StreamOptions(Strict):
    rules: ClassVar[FieldRules] = FieldRules(within="stream_options")

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    """vLLM's: every chunk carries the usage so far."""
    include_obfuscation: bool | None = None
    """Accepted and ignored: it pads OpenAI's own streams."""


def check_stream_options(options: StreamOptions | None, stream: bool | None) -> None:
    asks = options is not None and (options.include_usage or options.continuous_usage_stats)
    if asks and not stream:
        refuse("stream_options", "needs stream to be true")
