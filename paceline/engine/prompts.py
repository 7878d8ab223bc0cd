"""Knows the ways in which prompts are handed over, vLLM's and transformers' among them."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from itertools import compress
from numbers import Integral
from typing import Any, NamedTuple

from paceline.core.errors import InvalidRequestError, shown
from paceline.engine.arguments import is_many, plain

PROMPT_KEYS = ("prompt_token_ids", "prompt", "input_ids")
"""What a prompt given as a map may hold; where it holds several, the first counts."""
ENCODED_KEYS = ("attention_mask", "token_type_ids")
"""What transformers' tokenizers put beside input_ids."""


class Prompt(NamedTuple):
    """One prompt: token ids, or text that is tokenised, or both, where the text is only repeated in the output."""

    text: str | None
    token_ids: list[Any] | None
    cache_salt: str | None = None


def prompt_list(prompts: Any, token_ids: Any = None) -> list[Any]:
    """One prompt or many, each still as it was given: a list of integers is one prompt of token ids.

    Args:
        token_ids: token ids of the one or of each, beside or in place of ``prompts``; they count.
    """
    if token_ids is None:
        return _many(prompts, "prompts")
    ids = _many(token_ids, "prompt_token_ids")
    texts = [None] * len(ids) if prompts is None else _many(prompts, "prompts")
    if len(texts) != len(ids):
        raise InvalidRequestError(f"{len(texts)} prompts, but {len(ids)} prompt_token_ids", param="prompt_token_ids")
    if not all(text is None or isinstance(text, str) for text in texts):
        raise InvalidRequestError("prompts beside prompt_token_ids must be text", param="prompts")
    return [{"prompt": text, "prompt_token_ids": one} for text, one in zip(texts, ids, strict=True)]


def as_prompt(prompt: Any) -> Prompt:
    """Text, token ids in any kind of list or array, or a map such as vLLM's TextPrompt and TokensPrompt.

    Raises:
        InvalidRequestError: it is none of those, or a map asks for what there is not.
    """
    if isinstance(prompt, Prompt):
        return prompt
    if isinstance(prompt, Mapping):
        return _of_map(prompt)
    prompt = plain(prompt)
    return Prompt(prompt, None) if isinstance(prompt, str) else Prompt(None, _token_list(prompt))


def _many(prompts: Any, name: str) -> list[Any]:
    prompts = plain(prompts)
    if isinstance(prompts, Mapping):
        return _rows(prompts) if "input_ids" in prompts else [prompts]
    if isinstance(prompts, str):
        return [prompts]
    many = list(prompts) if is_many(prompts) else []
    if not many:
        raise InvalidRequestError(f"{name} must be text, token ids or a non-empty list of them", param=name)
    return [many] if isinstance(plain(many[0]), Integral) else many


def _of_map(prompt: Mapping[str, Any]) -> Prompt:
    key = next((key for key in PROMPT_KEYS if prompt.get(key) is not None), None)
    if key is None:
        keys = " or ".join(PROMPT_KEYS[:2])
        raise InvalidRequestError(f"a prompt's keys must be {keys}, got {shown(list(prompt))}", param="prompt")
    _check_keys(prompt, {*PROMPT_KEYS, "cache_salt", *(ENCODED_KEYS if key == "input_ids" else ())})
    salt, text = prompt.get("cache_salt"), prompt.get("prompt")
    if key == "input_ids":
        rows = _rows(prompt)
        if len(rows) != 1:
            raise InvalidRequestError(f"a prompt's input_ids hold {len(rows)} prompts", param="prompt")
        return Prompt(text, rows[0], salt)
    if key == "prompt" and isinstance(text, str):
        return Prompt(text, None, salt)
    return Prompt(text if isinstance(text, str) else None, _token_list(prompt[key]), salt)


def _check_keys(prompt: Mapping[str, Any], read: set[str]) -> None:
    """Raises InvalidRequestError for a key that would go unread, such as an image, unless it asks for nothing."""
    for name, value in prompt.items():
        if name not in read and value is not None and not (isinstance(value, Sized) and not len(value)):
            raise InvalidRequestError(
                f"a prompt's {shown(name)} is not supported\nThe model reads text alone: leave it out.", param="prompt"
            )


def _rows(encoded: Mapping[str, Any]) -> list[list[Any]]:
    """The prompts of what transformers' tokenizers return, without what only fills them up to one length."""
    rows = _nested(encoded["input_ids"])
    kinds = encoded.get("token_type_ids")
    if kinds is not None and any(kind for row in _nested(kinds) for kind in row):
        raise InvalidRequestError("token_type_ids other than 0 are not supported\nLeave them out.", param="prompt")
    mask = encoded.get("attention_mask")
    masks = _nested(mask) if mask is not None else [[1] * len(row) for row in rows]
    if [len(row) for row in rows] != [len(row) for row in masks]:
        raise InvalidRequestError("attention_mask must have the shape of input_ids", param="prompt")
    return [list(compress(row, mask)) for row, mask in zip(rows, masks, strict=True)]


def _nested(values: Any) -> list[list[Any]]:
    """A row, or rows, as rows."""
    found = [_token_list(one) if is_many(one := plain(item)) else one for item in _token_list(values)]
    return found if found and all(isinstance(one, list) for one in found) else [found]


def _token_list(prompt: Any) -> list[Any]:
    """The items of what holds token ids; what they are is checked with the vocabulary."""
    prompt = plain(prompt)
    if not is_many(prompt):
        raise InvalidRequestError(f"a prompt must be text or token ids, got {type(prompt).__name__}", param="prompt")
    if type(prompt) is list and all(type(token) is int for token in prompt):
        return prompt
    return [plain(token) for token in prompt]
