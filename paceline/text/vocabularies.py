"""Knows what the vocabularies of two tokenizers have in common."""

from __future__ import annotations

from paceline.text.token_text import plain_tokens
from paceline.text.tokenizer import Tokenizer


def differing_token(one: Tokenizer, other: Tokenizer) -> str | None:
    """A token that the larger vocabulary lacks or numbers otherwise, and the smaller one has; None if there is none.

    Then both have the same tokens, and one may have more.
    """
    less, more = sorted((each.backend.get_vocab() for each in (one, other)), key=len)
    return next((token for token, token_id in less.items() if more.get(token) != token_id), None)


def shared_tokens(one: Tokenizer, one_size: int, other: Tokenizer, other_size: int) -> dict[int, int]:
    """Ids of ``one``'s tokens -> ids of ``other``'s tokens of the same bytes, each below its vocabulary's size.

    Special tokens are shared as ``special_tokens`` says. No id comes twice on either side.
    """
    mine, theirs = plain_tokens(one, one_size), plain_tokens(other, other_size)
    found = {theirs[spelt]: token for spelt, token in mine.items() if spelt in theirs}
    for token, meant in special_tokens(one, other).items():
        if token < one_size and meant < other_size:
            found.setdefault(meant, token)
    return {token: meant for meant, token in found.items()}


def special_tokens(one: Tokenizer, other: Tokenizer) -> dict[int, int]:
    """Ids of ``one``'s special tokens -> ids of those of ``other`` of the same name, or that begin or end texts too."""
    names = {other.backend.id_to_token(token): token for token in other.special_ids}
    pairs = {token: names.get(one.backend.id_to_token(token)) for token in sorted(one.special_ids)}
    for token, meant in ((one.bos_token_id, other.bos_token_id), (one.eos_token_id, other.eos_token_id)):
        if token is not None and pairs.get(token) is None:
            pairs[token] = meant
    return {token: meant for token, meant in pairs.items() if meant is not None}
