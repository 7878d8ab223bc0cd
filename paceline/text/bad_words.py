"""Knows which token sequences spell a bad word."""

from __future__ import annotations

from collections.abc import Iterable

from paceline.core.errors import InvalidRequestError, shown
from paceline.text.failures import failing
from paceline.text.tokenizer import Tokenizer, check_text

ANCHOR = "x"
"""Text before white space; any that does not merge with it will do."""
BEFORE = ("\n", "\t", "(", "[", "{", "<", '"', "'", "`", "*", "_", "-", "/", ".", ":", ">", "x", "0")
"""What a word may follow directly. Tokenizers that mark the start of a text or of each word (``▁``) spell it otherwise
there than alone, and others merge some of these with its first letters."""


AT_ONCE = 64
"""Words that are tokenised in one go, in which other threads run."""


def bad_word_ids(tokenizer: Tokenizer, words: Iterable[str]) -> tuple[tuple[int, ...], ...]:
    """Returns each word's tokens at the start of a text, after a space and directly behind other text; each once.

    White space is a word of its own: its tokens at the start of a text and within one.

    Raises:
        InvalidRequestError: a word that is not valid Unicode, has no tokens, or is one that the tokenizer fails on.
    """
    listed = list(words)
    for word in listed:
        check_text(word, "bad_words")
    if not listed:
        return ()
    alone = dict(zip(("", ANCHOR, *BEFORE), _encode(tokenizer, ["", ANCHOR, *BEFORE]), strict=True))
    found: dict[tuple[int, ...], None] = {}
    for start in range(0, len(listed), AT_ONCE):
        places = [(word, *place) for word in listed[start : start + AT_ONCE] for place in _places(word)]
        together = _encode(tokenizer, [before + written for _, before, written in places])
        spelled: set[str] = set()
        for (word, before, _), ids in zip(places, together, strict=True):
            spelling = ids[_shared(alone[before], ids) :]
            if spelling:
                found[spelling] = None
                spelled.add(word)
        for word in listed[start : start + AT_ONCE]:
            if word not in spelled:
                raise InvalidRequestError(f"bad_words must have tokens, got {shown(word)}", param="bad_words")
    return tuple(found)


def _places(word: str) -> list[tuple[str, str]]:
    """(what stands before, the word as it is written there)."""
    bare = word.lstrip()
    if not bare:
        return [("", word), (ANCHOR, word)]
    return [("", bare), ("", f" {bare}"), (ANCHOR, f" {bare}"), *((before, bare) for before in BEFORE)]


def _encode(tokenizer: Tokenizer, texts: list[str]) -> list[tuple[int, ...]]:
    try:
        encodings = tokenizer.backend.encode_batch(texts, add_special_tokens=False)
    except BaseException as error:
        raise failing(error, "tokenise these bad_words", "bad_words") from None
    return [tuple(encoding.ids) for encoding in encodings]


def _shared(alone: tuple[int, ...], both: tuple[int, ...]) -> int:
    """How many tokens of what stands before do not merge with the word."""
    differs = (place for place, pair in enumerate(zip(alone, both, strict=False)) if pair[0] != pair[1])
    return next(differs, min(len(alone), len(both)))
