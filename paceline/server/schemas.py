"""Knows the request bodies: which fields there are, their strict types, and what becomes of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from paceline.core.errors import InvalidRequestError
from paceline.core.params import INT32_MAX, MAX_LOGPROBS, MAX_SAMPLES, SamplingParams

# OpenAI fields that change nothing in an answer.
_IGNORED = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
# OpenAI fields that are not supported; values that ask for nothing are accepted, as some clients send them always.
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}
_NEUTRAL_IN_MESSAGES = ("refusal", "audio", "function_call", "tool_calls", "annotations")


def _text_of(content: object) -> object:
    """Content parts become one string, joined by line breaks; only text is understood."""
    if content is None:
        return ""
    if not isinstance(content, list):
        return content
    return "\n".join(_text_of_part(part) for part in content)


def _text_of_part(part: object) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise ValueError('a content part must be an object with a "type"')
    if kind != "text":
        raise ValueError(f"content parts of type {kind[:40]!r} are not supported; the model reads text only")
    text = part.get("text")
    if set(part) != {"type", "text"} or not isinstance(text, str):
        raise ValueError('a text part must be {"type": "text", "text": "..."}')
    return text


def _token_map(bias: object) -> object:
    """JSON has only strings for keys; OpenAI writes token ids so."""
    if not isinstance(bias, dict):
        return bias
    if not all(isinstance(key, str) and re.fullmatch(r"[0-9]{1,9}", key) for key in bias):
        raise ValueError("keys must be token ids")
    return {int(key): value for key, value in bias.items()}


Number = Annotated[float, Field(allow_inf_nan=False)]
# Both names of the limit have their range here: each is checked before the two are compared.
TokenCount = Annotated[int, Field(ge=1, le=INT32_MAX)]


class Strict(BaseModel):
    """No coercion (a bool is no int, a string no number; an int is a number), no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text_of)] = ""
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if key not in _NEUTRAL_IN_MESSAGES or value not in (None, [])}

    def for_template(self) -> dict[str, str]:
        """Templates know the developer by its older name."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": self.content} | ({"name": self.name} if self.name else {})


class SamplingFields(Strict):
    """Fields of every endpoint that generates; null is the default. Ranges are checked by ``SamplingParams``."""

    model: str | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: int | None = None
    min_p: Number | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    repetition_penalty: Number | None = None
    logit_bias: Annotated[dict[int, Number] | None, BeforeValidator(_token_map)] = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    seed: int | None = None
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    speculation: bool | None = None
    """False decodes this call plainly, to the same text."""
    stream: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, data: object) -> object:
        if not isinstance(data, dict):
            raise InvalidRequestError("the body must be a JSON object")
        return {key: value for key, value in data.items() if not _asks_for_nothing(key, value)}

    def sampling_params(self, default_max_tokens: int, **more: int | None) -> SamplingParams:
        """Raises InvalidRequestError: a value out of range, by field."""
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            _refuse("max_tokens", "differs from max_completion_tokens; give one of them")
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        names = SamplingFields.model_fields.keys() - {"model", "max_completion_tokens", "speculation", "stream"}
        given: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        given["max_tokens"] = max(default_max_tokens, self.min_tokens or 0) if limit is None else limit
        given.update(more)
        return SamplingParams(**given)


def _asks_for_nothing(name: object, value: object) -> bool:
    if name in _IGNORED:
        return True
    if name not in _NEUTRAL:
        return False
    if value is not None and value not in _NEUTRAL[str(name)]:
        _refuse(str(name), "is not supported")
    return True


def _refuse(name: str, why: str) -> NoReturn:
    raise InvalidRequestError(f"{name} {why}", param=name)


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool | None = None
    """Accepted and ignored: it pads OpenAI's own streams."""


class ChatCompletionRequest(SamplingFields):
    """``POST /v1/chat/completions``."""

    model: str
    messages: list[Message] = Field(min_length=1)
    n: int | None = Field(default=None, ge=1, le=MAX_SAMPLES)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    stream_options: StreamOptions | None = None

    def params(self, default_max_tokens: int) -> SamplingParams:
        if self.top_logprobs is not None and not self.logprobs:
            _refuse("top_logprobs", "needs logprobs to be true")
        if self.stream_options is not None and not self.stream:
            _refuse("stream_options", "needs stream to be true")
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return self.sampling_params(default_max_tokens, n=self.n or 1, logprobs=logprobs)

    @property
    def conversation(self) -> list[dict[str, str]]:
        return [message.for_template() for message in self.messages]


class ChatRequest(SamplingFields):
    """``POST /chat``: one message, or the conversation so far."""

    message: str | None = None
    messages: list[Message] | None = Field(default=None, min_length=1)

    def params(self, default_max_tokens: int) -> SamplingParams:
        return self.sampling_params(default_max_tokens)

    @property
    def conversation(self) -> list[dict[str, str]]:
        if (self.message is None) == (self.messages is None):
            raise InvalidRequestError('give either "message" or "messages"', param="message")
        if self.messages is not None:
            return [message.for_template() for message in self.messages]
        if not self.message:
            raise InvalidRequestError("message must not be empty", param="message")
        return [{"role": "user", "content": self.message}]
