"""One tokenizer's tokens in another's, while the text grows: as good as encoding the text anew each time."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from paceline.text import Translation, continue_text, shared_tokens, token_bytes
from tests.support.tokenizers import KINDS

TEXT = "hello world, the cat says hello. don't stop\n the end is near 12 + 30 = 42 "
PAIRS = list(product(KINDS, KINDS))


def followed(translation: Translation, tokens: list[int], sizes: list[int]) -> list[int]:
    """All settled tokens and those behind them, after tokens that come in pieces."""
    settled, behind, place = list[int](), list[int](), 0
    for size in sizes:
        translation.extend(tokens[place : place + size])
        place += size
        more, behind = translation.take()
        settled += more
    return settled + behind


@pytest.mark.parametrize(("source", "other"), PAIRS)
def test_what_has_grown_is_what_the_whole_text_becomes(source: str, other: str) -> None:
    """In steps of any size, and far behind what is settled."""
    mine, theirs = KINDS[source](), KINDS[other]()
    random = np.random.default_rng(3)
    whole = mine.encode(TEXT * 20, add_special_tokens=False)
    tokens = [token for token in whole if token not in mine.special_ids]
    text = mine.decode(tokens)
    sizes = random.integers(1, 9, size=len(tokens)).tolist()
    expected = [token for token in theirs.encode("") if token == theirs.bos_token_id]
    expected += theirs.encode(text, add_special_tokens=False)
    found = followed(Translation(mine, theirs), tokens, sizes)
    assert found == expected
    assert followed(Translation(mine, theirs), tokens, [len(tokens)]) == expected


@pytest.mark.parametrize(("source", "other"), PAIRS)
def test_little_is_encoded_again(source: str, other: str) -> None:
    mine, theirs = KINDS[source](), KINDS[other]()
    translation = Translation(mine, theirs)
    for token in mine.encode(TEXT * 20, add_special_tokens=False):
        translation.extend([token])
        _, behind = translation.take()
        assert len(translation._text) < 700
        assert len(behind) < 700


@pytest.mark.parametrize(("source", "other"), PAIRS)
def test_random_ids_become_something(source: str, other: str) -> None:
    """Also special ones, halves of characters, and ids that there are not."""
    mine, theirs = KINDS[source](), KINDS[other]()
    random = np.random.default_rng(5)
    for size in (1, 7, 60, 400):
        tokens = random.integers(mine.vocab_size + 5, size=size).tolist()
        translation = Translation(mine, theirs)
        found = followed(translation, tokens, [3] * (size // 3 + 1))
        assert translation.num_source == size
        assert all(0 <= token < theirs.vocab_size for token in found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_goes_on_without_a_space_that_nobody_wrote(kind: str) -> None:
    tokenizer = KINDS[kind]()
    for before, text in (("hel", "lo world"), ("hello", " world"), ("", "lo"), ("the end\n", "is")):
        tokens = continue_text(tokenizer, before, text)
        assert b"".join(token_bytes(tokenizer, token) for token in tokens).decode() in (text, text.replace("\n", ""))


@pytest.mark.parametrize(("source", "other"), PAIRS)
def test_shared_tokens_are_those_of_the_same_bytes(source: str, other: str) -> None:
    mine, theirs = KINDS[source](), KINDS[other]()
    pairs = shared_tokens(mine, mine.vocab_size, theirs, theirs.vocab_size)
    assert len(set(pairs.values())) == len(pairs) > 8
    for token, meant in pairs.items():
        special = token in mine.special_ids
        assert special == (meant in theirs.special_ids)
        assert special or token_bytes(mine, token) == token_bytes(theirs, meant)
    small = shared_tokens(mine, 40, theirs, 50)
    assert all(token < 40 and meant < 50 for token, meant in small.items())
