"""Knows the ways in which conversations are handed over to ``LLM.chat``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paceline.core.errors import InvalidRequestError, shown
from paceline.engine.arguments import is_many

TEXT_PARTS = ("text", "input_text", "output_text")


class ChatPrompt(dict[str, Any]):
    """A prompt that was made of a conversation, so that what is wrong with it is told of ``messages``."""


def place_of(prompt: Any) -> str:
    """The argument that a prompt came by."""
    return "messages" if isinstance(prompt, ChatPrompt) else "prompts"


def conversations(messages: Any) -> list[Any]:
    """One conversation or many: a list of messages is one."""
    many = list(messages) if is_many(messages) else []
    many = [many] if any(isinstance(one, Mapping) for one in many) else many
    if not many:
        raise InvalidRequestError("messages must be a list of messages, or a list of such lists", param="messages")
    return many


def conversation(messages: Any) -> list[dict[str, Any]]:
    """The messages with their content as one text; parts that are text are joined by line breaks."""
    found: list[Any] = list(messages) if is_many(messages) else [None]
    if not all(isinstance(message, Mapping) for message in found):
        raise InvalidRequestError("messages must be a list of messages, or a list of such lists", param="messages")
    return [{**message, "content": _content(message)} for message in found]


def _content(message: Mapping[str, Any]) -> str:
    content: Any = message.get("content")
    if isinstance(content, str):
        return content
    if content is None and message.get("role") == "assistant":
        return ""  # what clients keep of an answer without text
    parts: list[Any] = list(content) if is_many(content) else [content]
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") in TEXT_PARTS else None
        if not isinstance(text, str):
            raise InvalidRequestError(f"a message's content must be text, got {shown(content)}", param="messages")
    return "\n".join(part["text"] for part in parts)
