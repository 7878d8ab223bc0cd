"""Knows the bodies of ``POST /tokenize`` and ``POST /detokenize``, which are vLLM's."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from paceline.core.errors import InvalidRequestError
from paceline.server.schemas.base import Body, TokenId
from paceline.server.schemas.chat import Message
from paceline.server.schemas.reading import FieldRules
from paceline.server.schemas.unsupported import IGNORED, OF_TEMPLATES, TOOL_REASONS


class TokenizeRequest(Body):
    """A text or a conversation, of which the tokens are wanted."""

    rules: ClassVar[FieldRules] = FieldRules(IGNORED, OF_TEMPLATES, TOOL_REASONS)

    prompt: str | None = None
    messages: list[Message] | None = Field(default=None, min_length=1)
    add_special_tokens: bool | None = None
    """Of a text: true unless given. What a chat template writes gets no further tokens."""
    add_generation_prompt: bool | None = None
    """Of a conversation: whether the prompt ends where the answer begins; true unless given."""
    return_token_strs: bool | None = None

    def check(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequestError('give either "prompt" or "messages"', param="prompt")
        if self.messages is not None and self.add_special_tokens:
            raise InvalidRequestError(
                "add_special_tokens must be false for messages: their special tokens are the template's",
                param="add_special_tokens",
            )


class DetokenizeRequest(Body):
    """Tokens, of which the text is wanted, special tokens included."""

    tokens: Annotated[list[TokenId], Field(max_length=2**20)]
