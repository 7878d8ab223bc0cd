"""Streaming decoding is invisible: the joined deltas are the text that all tokens decode to at once."""

from __future__ import annotations

import time

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from paceline.core.params import SamplingParams
from paceline.text.detokenizer import Detokenizer
from paceline.text.stream_decoder import BROKEN
from tests.support.tokenizers import KINDS, byte_fallback, byte_level

FEW = settings(max_examples=60, deadline=None)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.text(
    "😀é e\u0301你ab\u200d👩🏽👧 \n", max_size=40
)


def stream(tokenizer, ids, *, prompt=(), **params):
    """(deltas taken after each token and at the end, the detokenizer)."""
    detokenizer = Detokenizer(tokenizer, SamplingParams(**params), prompt_token_ids=prompt)
    deltas = []
    for token in ids:
        stopped = detokenizer.push(token)
        deltas.append(detokenizer.take_delta(finished=stopped))
        if stopped:
            break
    deltas.append(detokenizer.take_delta(finished=True))
    assert "".join(deltas) == detokenizer.text
    return deltas, detokenizer


@FEW
@given(ids=st.lists(st.integers(0, 330), max_size=60), skip=st.booleans())
def test_random_byte_level_tokens(ids, skip):
    tokenizer = byte_level()
    _, detokenizer = stream(tokenizer, ids, skip_special_tokens=skip)
    assert detokenizer.text == tokenizer.decode(ids, skip_special_tokens=skip)


@FEW
@given(data=st.binary(max_size=60), skip=st.booleans())
def test_random_bytes_one_per_token(data, skip):
    tokenizer = byte_level()
    letters = sorted(set(range(6, 262)))
    ids = [letters[byte] for byte in data]
    _, detokenizer = stream(tokenizer, ids, skip_special_tokens=skip)
    assert detokenizer.text == tokenizer.decode(ids, skip_special_tokens=skip)


@FEW
@given(text=texts, kind=st.sampled_from(sorted(KINDS)), skip=st.booleans())
def test_random_unicode_through_every_kind(text, kind, skip):
    tokenizer = KINDS[kind]()
    ids = tokenizer.encode(text, add_special_tokens=False)
    assume(BROKEN not in text)
    deltas, detokenizer = stream(tokenizer, ids, skip_special_tokens=skip)
    assert detokenizer.text == tokenizer.decode(ids, skip_special_tokens=skip)
    assert not any(BROKEN in delta for delta in deltas)


@FEW
@example(ids=[3 + 0x20], skip=True)
@example(ids=[3 + 0x20, 3 + 0x20, 3 + 0xC3], skip=True)
@given(ids=st.lists(st.integers(0, 279), max_size=60), skip=st.booleans())
def test_byte_fallback_breaks_only_the_bad_bytes(ids, skip):
    tokenizer = byte_fallback()
    _, detokenizer = stream(tokenizer, ids, skip_special_tokens=skip)
    whole = tokenizer.decode(ids, skip_special_tokens=skip)
    if BROKEN not in whole and not any(token in tokenizer.special_ids for token in ids):
        assert detokenizer.text == whole
    assert len(detokenizer.text) <= len(whole)
    assert BROKEN in whole or BROKEN not in detokenizer.text or not skip


@FEW
@given(prompt=texts, answer=texts, kind=st.sampled_from(sorted(KINDS)))
def test_the_prompt_gives_the_spacing(prompt, answer, kind):
    tokenizer = KINDS[kind]()
    assume(BROKEN not in prompt + answer)
    before = tokenizer.encode(prompt, add_special_tokens=False)
    ids = tokenizer.encode(answer, add_special_tokens=False)
    assume(not any(token in tokenizer.special_ids for token in before))
    _, detokenizer = stream(tokenizer, ids, prompt=before)
    assert tokenizer.decode(before) + detokenizer.text == tokenizer.decode([*before, *ids])


def test_a_turn_begins_without_the_space_of_a_word():
    tokenizer = byte_fallback()
    hello = tokenizer.encode("hello", add_special_tokens=False)
    assert stream(tokenizer, hello, prompt=[*hello, 2])[1].text == "hello"
    assert stream(tokenizer, hello, prompt=hello)[1].text == " hello"


def test_a_split_character_is_held_back_until_it_is_whole():
    tokenizer = byte_level()
    letters = list(range(6, 262))
    table = {tokenizer.backend.id_to_token(i): i for i in letters}
    shown = ByteLevel(add_prefix_space=False).pre_tokenize_str("🦜")[0][0]
    ids = [table[character] for character in shown]
    deltas, _ = stream(tokenizer, ids)
    assert deltas == ["", "", "", "🦜", ""]
    deltas, detokenizer = stream(tokenizer, ids[:2])
    assert deltas == ["", "", BROKEN]
    assert detokenizer.text == BROKEN


def test_the_answer_does_not_complete_the_prompts_character():
    tokenizer = byte_fallback()
    assert stream(tokenizer, [3 + 0xAC], prompt=[3 + 0xE2, 3 + 0x82])[1].text == BROKEN


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_work_per_token_does_not_grow(kind):
    tokenizer = KINDS[kind]()
    ids = tokenizer.encode("hello world, ", add_special_tokens=False) * 2000
    detokenizer = Detokenizer(tokenizer, SamplingParams(stop=["never this", "nor that"]))
    times = []
    for start in range(0, 8000, 2000):
        began = time.perf_counter()
        for token in ids[start : start + 2000]:
            detokenizer.push(token)
            detokenizer.take_delta(finished=False)
        times.append(time.perf_counter() - began)
    assert len(detokenizer._decoder._window) <= 16
    assert min(times[2:]) < 5 * min(times[:2])


def test_detokenize_off_gives_no_text():
    _, detokenizer = stream(byte_level(), [40, 41], detokenize=False)
    assert detokenizer.text == ""


def test_a_stop_token_that_ends_the_answer_adds_no_text():
    tokenizer = byte_level()
    ids = tokenizer.encode("hello the")
    plain, kept = (
        stream(tokenizer, ids, stop_token_ids=[ids[-1]], include_stop_str_in_output=k)[1] for k in (False, True)
    )
    assert plain.text == tokenizer.decode(ids[:-1])
    assert kept.text == tokenizer.decode(ids)
    early = Detokenizer(tokenizer, SamplingParams(min_tokens=5, skip_special_tokens=False), end_token_ids=[1])
    for token in (ids[0], 1, ids[0], ids[0], 1):
        early.push(token)
    assert early.text == tokenizer.decode([ids[0], 1, ids[0], ids[0]], skip_special_tokens=False)
