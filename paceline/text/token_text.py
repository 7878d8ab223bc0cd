"""Knows what one token contributes to a text, by itself: its characters and its bytes."""

from __future__ import annotations

from functools import cache, lru_cache

from paceline.text.tokenizer import Tokenizer

MOST_REMEMBERED = 2**17
"""Tokens whose text is kept: those of one large vocabulary."""


@lru_cache(MOST_REMEMBERED)
def token_text(tokenizer: Tokenizer, token: int) -> str:
    """The token's text inside a text, its leading space kept; special tokens give their names."""
    return _text(tokenizer, token)


def _text(tokenizer: Tokenizer, token: int) -> str:
    # Decoders drop a space at the beginning of a text, so the token is read where it follows itself.
    alone, twice = (tokenizer.decode([token] * count, skip_special_tokens=False) for count in (1, 2))
    return twice[len(alone) :]


@lru_cache(MOST_REMEMBERED)
def token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """The token's bytes, also where they are only a part of a character."""
    return _bytes(tokenizer, token, byte_level=_is_byte_level(tokenizer))


def plain_tokens(tokenizer: Tokenizer, vocab_size: int) -> dict[bytes, int]:
    """The tokens below ``vocab_size`` that are text, by their bytes; of several the first."""
    byte_level, found = _is_byte_level(tokenizer), dict[bytes, int]()
    for token in range(min(vocab_size, tokenizer.vocab_size)):
        if token not in tokenizer.special_ids:
            found.setdefault(_bytes(tokenizer, token, byte_level=byte_level), token)
    found.pop(b"", None)
    return found


def _bytes(tokenizer: Tokenizer, token: int, *, byte_level: bool) -> bytes:
    if token in tokenizer.byte_tokens:
        return bytes([tokenizer.byte_tokens[token]])
    name = tokenizer.backend.id_to_token(token) or ""
    table = _byte_of_letter()
    if byte_level and token not in tokenizer.special_ids and all(letter in table for letter in name):
        return bytes(table[letter] for letter in name)
    return _text(tokenizer, token).encode()


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    space = tokenizer.backend.token_to_id("\u0120")
    return space is not None and tokenizer.decode([space]) == " "


@cache
def _byte_of_letter() -> dict[str, int]:
    """GPT-2's letters for bytes: printable Latin-1 stands for itself, the rest follows from U+0100 on in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
