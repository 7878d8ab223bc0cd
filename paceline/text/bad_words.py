"""Knows which token sequences spell a bad word."""

from __future__ import annotations

from collections.abc import Iterable

from paceline.core.errors import InvalidRequestError, shown
from paceline.text.tokenizer import Tokenizer, check_text

ANCHOR = "x"
"""Text before white space; any that does not merge with it will do."""


def bad_word_ids(tokenizer: Tokenizer, words: Iterable[str]) -> tuple[tuple[int, ...], ...]:
    """Returns each word's tokens at the start of a text and after a space, as vLLM does; duplicates once.

    White space is a word of its own: its tokens at the start of a text and within one.

    Raises:
        InvalidRequestError: a word that is not valid Unicode, has no tokens, or is one that the tokenizer fails on.
    """
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        check_text(word, "bad_words")
        bare = word.lstrip()
        if bare:
            variants = [_encode(tokenizer, bare), _encode(tokenizer, f" {bare}")]
        else:
            variants = [_encode(tokenizer, word), _within_text(tokenizer, word)]
        spelled = [ids for ids in variants if ids]
        if not spelled:
            raise InvalidRequestError(f"bad_words must have tokens, got {shown(word)}", param="bad_words")
        found.update(dict.fromkeys(spelled))
    return tuple(found)


def _encode(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False, param="bad_words"))


def _within_text(tokenizer: Tokenizer, space: str) -> tuple[int, ...]:
    """Tokenizers that mark the start of a text with a token of its own spell white space there differently."""
    before, both = _encode(tokenizer, ANCHOR), _encode(tokenizer, ANCHOR + space)
    return both[len(before) :] if both[: len(before)] == before else ()
