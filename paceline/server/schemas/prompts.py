"""Knows the four ways in which a body writes its prompts: text, texts, token ids, lists of token ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paceline.server.schemas.base import TOKEN_ID, array

Prompt = str | list[int]

_IDS = {"type": "array", "items": TOKEN_ID, "minItems": 1}


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def as_prompts(most: int) -> Callable[[Any], list[Prompt]]:
    """A validator: the prompts as a list of 1 to ``most``, each a text or a non-empty list of integers."""

    def listed(value: Any) -> list[Prompt]:
        if isinstance(value, str) or _is_ids(value):
            return [value]
        uniform = isinstance(value, list) and (all(isinstance(v, str) for v in value) or all(map(_is_ids, value)))
        if not uniform or not value:
            raise ValueError("must be text, token ids, or a non-empty list of texts or of lists of token ids")
        if len(value) > most:
            raise ValueError(f"must hold at most {most} prompts, got {len(value)}")
        return list(value)

    return listed


def prompts_schema(most: int) -> dict[str, Any]:
    """The same as JSON schema."""
    text = {"type": "string"}
    return {"anyOf": [text, array(text, least=1, most=most), _IDS, array(_IDS, least=1, most=most)]}
