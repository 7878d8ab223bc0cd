"""What a tokenizer directory says, and what it may not do."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from tokenizers import AddedToken, normalizers
from transformers import AutoTokenizer

from paceline.core.errors import CheckpointError, InvalidRequestError
from paceline.text import Tokenizer, bad_word_ids, token_bytes, token_text
from tests.support.tokenizers import CHAT, byte_fallback, byte_level, of, unigram, write_byte_level


def test_a_directory(tmp_path):
    tokenizer = Tokenizer.load(write_byte_level(tmp_path))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    assert tokenizer.special_ids == set(range(6))
    assert tokenizer.decode(tokenizer.encode("hello 你好\0")) == "hello 你好\0"
    assert tokenizer.vocab_size == tokenizer.backend.get_vocab_size()
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}]).endswith("<|assistant|>")


@pytest.mark.parametrize("key", ["auto_map", "trust_remote_code"])
def test_a_tokenizer_that_asks_for_code(tmp_path, key):
    write_byte_level(tmp_path, **{key: False})
    assert Tokenizer.load(tmp_path)
    write_byte_level(tmp_path, **{key: {"AutoTokenizer": ["code.Tokenizer", None]}})
    with pytest.raises(CheckpointError, match=rf"tokenizer_config\.json has '{key}'"):
        Tokenizer.load(tmp_path)


def test_no_tokenizer(tmp_path):
    assert Tokenizer.try_load(tmp_path) is None
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"]
)
@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1]", b"[" * 100_000])
def test_corrupt_files_are_named(tmp_path, name, content):
    write_byte_level(tmp_path)
    (tmp_path / name).write_bytes(content)
    if name == "chat_template.jinja" and content != b"\xff\xfe":
        Tokenizer.load(tmp_path)  # Any text is a template; a broken one fails when it is used.
        return
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        Tokenizer.load(tmp_path)


def test_chat_templates_by_name_and_by_file(tmp_path):
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    write_byte_level(tmp_path, chat_template=named)
    messages = [{"role": "user", "content": "hi"}]
    assert Tokenizer.load(tmp_path).apply_chat_template(messages) == "d"
    (tmp_path / "chat_template.jinja").write_text("file {{ eos_token }}")
    assert Tokenizer.load(tmp_path).apply_chat_template(messages) == "file <|end|>"
    (tmp_path / "chat_template.jinja").unlink()
    write_byte_level(tmp_path, chat_template=[3])
    with pytest.raises(CheckpointError, match="chat_template"):
        Tokenizer.load(tmp_path)
    write_byte_level(tmp_path, chat_template=None)
    assert Tokenizer.load(tmp_path).chat_template is None


def test_truncation_and_padding_are_off(tmp_path):
    write_byte_level(tmp_path)
    backend = byte_level().backend
    copy = type(backend).from_str(backend.to_str())
    copy.enable_truncation(2)
    copy.enable_padding(length=9)
    copy.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).encode("hello world") == byte_level().encode("hello world")


@pytest.mark.parametrize(
    "flags", [{}, {"add_bos_token": True}, {"add_bos_token": True, "add_eos_token": True}, {"add_bos_token": False}]
)
def test_bos_and_eos_as_transformers_adds_them(tmp_path, flags):
    write_byte_level(tmp_path, **flags)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert Tokenizer.load(tmp_path).encode("hello é") == theirs("hello é")["input_ids"]


def test_tokens_that_only_the_config_calls_special(tmp_path):
    write_byte_level(tmp_path, additional_special_tokens=["<x>", "<absent>"], pad_token={"content": "<y>"})
    backend = byte_level().backend
    copy = type(backend).from_str(backend.to_str())
    copy.add_tokens([AddedToken("<x>", special=False, rstrip=True), AddedToken("<y>", special=False)])
    copy.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    ids = tokenizer.encode("<x> a<y><absent>")
    assert tokenizer.decode(ids) == "a<absent>"
    assert tokenizer.vocab_size == copy.get_vocab_size()
    assert "<absent>" not in json.loads(tokenizer.backend.to_str())["added_tokens"]


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", 3, None])
def test_text_that_is_not_unicode(text):
    with pytest.raises(InvalidRequestError):
        byte_level().encode(text)


def test_ids_that_are_not_tokens():
    assert byte_level().decode([40, 100_000, 41]) == byte_level().decode([40, 41])
    wrong: list[Any] = [[-1], [2**70], ["a"]]
    for ids in wrong:
        with pytest.raises(InvalidRequestError):
            byte_level().decode(ids)


def test_byte_tokens_only_where_they_are_decoded():
    assert byte_level().byte_tokens == {}
    assert unigram().byte_tokens == {}
    assert byte_fallback().byte_tokens == {3 + byte: byte for byte in range(256)}


def test_bad_words_with_and_without_a_space():
    tokenizer = byte_level()
    bare, spaced = bad_word_ids(tokenizer, [" hello", "hello"])
    assert tokenizer.decode(bare) == "hello"
    assert tokenizer.decode(spaced) == " hello"
    assert bad_word_ids(tokenizer, []) == ()
    assert CHAT.end in tokenizer.backend.get_vocab()


@pytest.mark.parametrize("word", ["\n", " ", "  ", "\t", " \n"])
def test_white_space_is_a_bad_word_of_its_own(word):
    (ids,) = bad_word_ids(byte_level(), [word])
    assert byte_level().decode(ids) == word
    tokenizer = byte_fallback()  # begins every text with "▁"
    both = tokenizer.encode(f"hello{word}", add_special_tokens=False)
    assert any(tuple(both[-len(ids) :]) == ids for ids in bad_word_ids(tokenizer, [word]))


def test_bad_words_without_tokens_or_unicode():
    backend = type(byte_level().backend).from_str(byte_level().backend.to_str())
    backend.normalizer = normalizers.Strip()
    for tokenizer, word in ((of(backend), " "), (byte_level(), "\ud800"), (byte_level(), "a\udfff")):
        with pytest.raises(InvalidRequestError) as caught:
            bad_word_ids(tokenizer, ["fine", word])
        assert caught.value.param == "bad_words"


def test_one_tokens_text_and_bytes():
    for tokenizer in (byte_level(), byte_fallback()):
        ids = tokenizer.encode("hello lo w 你", add_special_tokens=False)
        joined = b"".join(token_bytes(tokenizer, token) for token in ids).decode()
        assert joined.strip() == tokenizer.decode(ids)
    tokenizer = unigram()
    assert [token_text(tokenizer, token) for token in tokenizer.encode("hello lo")] == [" hel", "lo", " ", "lo"]
    assert token_text(byte_level(), 1) == "<|end|>"
    assert token_bytes(byte_level(), 1) == b"<|end|>"
    assert token_bytes(byte_level(), 9999) == b""


@pytest.mark.parametrize("kind", ["text", "conversation"])
def test_other_threads_go_on_while_a_long_text_is_encoded(kind):
    tokenizer = byte_level()
    text = "ab" * 200_000
    ticks, over = [], threading.Event()

    def tick():
        while not over.wait(0.002):
            ticks.append(1)

    ticker = threading.Thread(target=tick)
    ticker.start()
    try:
        during = 0
        for _ in range(5):
            before = len(ticks)
            mark = tokenizer._plain_text.new_mark()
            ids = tokenizer.encode(text) if kind == "text" else tokenizer._plain_text.encode(text, mark)
            during = max(during, len(ticks) - before)
    finally:
        over.set()
        ticker.join()
    assert during > 5
    assert ids == tokenizer.backend.encode(text, add_special_tokens=kind == "text").ids
