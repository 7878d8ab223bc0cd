"""Knows the bodies of the two chat endpoints, and what a message may hold."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, WithJsonSchema

from paceline.core.errors import InvalidRequestError
from paceline.core.params import MAX_LOGPROBS, MAX_SAMPLES, SamplingParams
from paceline.server.schemas.base import Strict, refuse
from paceline.server.schemas.generation import PromptEncoder, SamplingFields, StreamOptions, check_stream_options
from paceline.server.schemas.reading import FieldRules
from paceline.server.schemas.unsupported import TOOL_REASONS

_IN_HISTORY = frozenset(
    {
        "annotations",
        "cache_control",
        "id",
        "provider_specific_fields",
        "reasoning",
        "reasoning_content",
        "reasoning_details",
        "status",
        "thinking_blocks",
    }
)
"""What answers of services hold beside their text, and clients send back. Templates get role, content and name."""
_REFUSED_IN_MESSAGES = ("refusal", "audio", "function_call", "tool_calls", "tool_call_id")
_PART = FieldRules(frozenset({"annotations", "cache_control", "id", "logprobs"}), within="messages")
_TEXT_KINDS = ("text", "input_text", "output_text")
"""OpenAI's two services name them differently."""
_TEXT_PART: dict[str, Any] = {
    "type": "object",
    "properties": {"type": {"enum": list(_TEXT_KINDS)}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
_PART.describe(_TEXT_PART)
_CONTENT = WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "null"}, {"type": "array", "items": _TEXT_PART}]})


def _text_of(content: object, info: ValidationInfo) -> object:
    """Content parts become one string, joined by line breaks; only text is understood."""
    if not isinstance(content, list):
        return content
    return "\n".join(_text_of_part(part, info) for part in content)


def _text_of_part(part: object, info: ValidationInfo) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise ValueError('a content part must be an object with a "type"')
    if kind not in _TEXT_KINDS:
        raise ValueError(f"content parts of type {kind[:40]!r} are not supported; the model reads text only")
    read = _PART.read(part, {"type": kind, "text": None}, info.context)
    text = read.get("text")
    if set(read) != {"type", "text"} or not isinstance(text, str):
        raise ValueError('a text part must be {"type": "text", "text": "..."}')
    return text


def _no_tool(role: object) -> object:
    if role in ("tool", "function"):
        Message.rules.refuse(f'role "{role}"', TOOL_REASONS["tool_calls"])
    return role


class Message(Strict):
    rules: ClassVar[FieldRules] = FieldRules(
        _IN_HISTORY,
        {"type": ("message",), **dict.fromkeys(_REFUSED_IN_MESSAGES, ())},
        TOOL_REASONS,
        within="messages",
    )

    role: Annotated[Literal["system", "developer", "user", "assistant"], BeforeValidator(_no_tool)]
    content: Annotated[str, BeforeValidator(_text_of), _CONTENT] = ""
    name: str | None = None

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
        if self.top_logprobs and not self.logprobs:
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
