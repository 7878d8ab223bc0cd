"""Knows which token sequences spell a bad word."""

from __future__ import annotations

from collections.abc import Iterable

from paceline.core.errors import InvalidRequestError
from paceline.text.tokenizer import Tokenizer


def bad_word_ids(tokenizer: Tokenizer, words: Iterable[str]) -> tuple[tuple[int, ...], ...]:
    """Returns each word's tokens at the start of a text and after a space, as vLLM does; duplicates once.

    Raises:
        InvalidRequestError: a word that has no tokens.
    """
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = word.lstrip()
        for variant in (bare, f" {bare}"):
            ids = tuple(tokenizer.encode(variant, add_special_tokens=False)) if bare else ()
            if not ids:
                raise InvalidRequestError(f"bad_words must have tokens, got {word!r}", param="bad_words")
            found[ids] = None
    return tuple(found)
