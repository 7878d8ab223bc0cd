"""Knows the bodies of the two chat endpoints, and what a message may hold."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, WithJsonSchema, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from paceline.core.errors import InvalidRequestError
from paceline.core.params import MAX_LOGPROBS, MAX_SAMPLES, SamplingParams
from paceline.server.schemas.base import Strict, refuse
from paceline.server.schemas.generation import PromptEncoder, SamplingFields, StreamOptions, check_stream_options

_NEUTRAL_IN_MESSAGES = ("refusal", "audio", "function_call", "tool_calls", "annotations")
_TEXT_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
    "additionalProperties": False,
}
_CONTENT = WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "null"}, {"type": "array", "items": _TEXT_PART}]})


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


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text_of), _CONTENT] = ""
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if key not in _NEUTRAL_IN_MESSAGES or value not in (None, [])}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        properties: dict[str, Any] = handler.resolve_ref_schema(schema)["properties"]
        properties.update({name: {"enum": [None, []]} for name in _NEUTRAL_IN_MESSAGES})
        return schema

    def for_template(self) -> dict[str, str]:
        """Templates know the developer by its older name."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": self.content} | ({"name": self.name} if self.name else {})


class ChatCompletionRequest(SamplingFields):
    """``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    n: int | None = Field(default=None, ge=1, le=MAX_SAMPLES)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    stream_options: StreamOptions | None = None

    def params(self, default_max_tokens: int) -> SamplingParams:
        if self.top_logprobs is not None and not self.logprobs:
            refuse("top_logprobs", "needs logprobs to be true")
        check_stream_options(self.stream_options, self.stream)
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return self.sampling_params(default_max_tokens, n=self.n or 1, logprobs=logprobs)

    def prompts(self, encoder: PromptEncoder) -> list[list[int]]:
        return [encoder.chat([message.for_template() for message in self.messages])]


class ChatRequest(SamplingFields):
    """``POST /chat``: one message, or the conversation so far."""

    message: str | None = Field(default=None, min_length=1)
    messages: list[Message] | None = Field(default=None, min_length=1)

    def params(self, default_max_tokens: int) -> SamplingParams:
        return self.sampling_params(default_max_tokens)

    def prompts(self, encoder: PromptEncoder) -> list[list[int]]:
        if (self.message is None) == (self.messages is None):
            raise InvalidRequestError('give either "message" or "messages"', param="message")
        if self.messages is not None:
            return [encoder.chat([message.for_template() for message in self.messages])]
        return [encoder.chat([{"role": "user", "content": self.message or ""}])]
