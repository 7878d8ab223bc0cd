"""Bad training data is named with its line; what training sees is what the chat template writes."""

from __future__ import annotations

import json

import pytest

from paceline.core.errors import ConfigError
from paceline.text import Tokenizer
from paceline.training.corpus import read_corpus
from paceline.training.data import PIECE_CHARACTERS, ChatFormat, DataError, DataSource, Turn, read_documents
from paceline.training.stream import encode
from paceline.training.tokenizer import save_tokenizer, train_tokenizer

GOOD = {"turns": [{"role": "user", "text": "Hello there."}, {"role": "assistant", "text": "Hi! How can I help?"}]}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"\xff\xfe", "not UTF-8 at byte 0"),
        (b'{"turns": [{"role": "user", "text": "caf\xe9"}]}', "not UTF-8 at byte 40"),
        (b"{", "not JSON"),
        (b"[]", "expected"),
        (b'{"turns": []}', "expected"),
        (b'{"turns": [{"role": "robot", "text": "x"}]}', "role"),
        (b'{"turns": [{"role": "user"}]}', "text"),
        (b'{"turns": [{"role": "user", "text": "  "}]}', "is empty"),
        (b'{"turns": [{"role": "user", "text": "\\ud800"}]}', "surrogate"),
        (b'{"question": "1 + 1?"}', "text"),
        (b'{"question": 2, "answer": "3"}', "text"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_bad_lines_are_named(tmp_path, line: bytes, complaint: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_bytes(json.dumps(GOOD).encode() + b"\n\n" + line + b"\n")
    with pytest.raises(DataError, match=complaint) as error:
        read_documents([file])
    assert f"{file}:3" in str(error.value)


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.txt"])
def test_an_empty_file_is_named(tmp_path, name: str) -> None:
    (tmp_path / name).write_text("\n")
    with pytest.raises(DataError, match="the file is empty") as error:
        read_documents([tmp_path / name])
    assert f"{name}:1" in str(error.value)


def test_bytes_that_are_not_utf8_in_a_book_are_named_with_their_line(tmp_path) -> None:
    (tmp_path / "book.txt").write_bytes(b"One.\n\nTwo.\nThr\xffee.\n")
    with pytest.raises(DataError, match=r"book\.txt:4: not UTF-8 at byte 3 of the line"):
        read_documents([tmp_path / "book.txt"])


def test_a_missing_file_and_an_empty_folder_are_named(tmp_path) -> None:
    for text in (str(tmp_path / "nothing.jsonl"), str(tmp_path)):
        with pytest.raises(DataError, match=str(tmp_path)):
            DataSource.parse(text).files()


def test_every_refusal_says_what_to_do(tmp_path) -> None:
    (tmp_path / "data.jsonl").write_text("{")
    with pytest.raises(DataError) as error:
        read_documents([tmp_path / "data.jsonl"])
    assert len(str(error.value).splitlines()) == 2


def test_a_book_is_cut_between_paragraphs_and_loses_nothing(tmp_path) -> None:
    paragraphs = [f"Paragraph {number}. " + "word " * 300 + "end." for number in range(20)]
    (tmp_path / "book.txt").write_text("\ufeff" + "\r\n\r\n".join(paragraphs), encoding="utf-8")
    documents = read_documents([tmp_path / "book.txt"])
    assert len(documents) > 1
    assert all(len(document) == 1 and document[0].role is None for document in documents)
    assert all(len(document[0].text) >= PIECE_CHARACTERS for document in documents[:-1])
    assert "\n\n".join(document[0].text for document in documents) == "\n\n".join(paragraphs)


def test_calculations_are_stripped_from_answers(tmp_path) -> None:
    record = {"question": "Half of 48?", "answer": "48/2 = <<48/2=24>>24.\n#### 24"}
    (tmp_path / "data.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(record).encode())
    (document,) = read_documents([tmp_path / "data.jsonl"])
    assert document == (Turn("user", "Half of 48?"), Turn("assistant", "48/2 = 24.\n#### 24"))


def test_weights_of_sources(tmp_path) -> None:
    file = tmp_path / "a:b.jsonl"
    assert DataSource.parse(f"{file}:2.5") == DataSource(file, 2.5)
    assert DataSource.parse(str(file)) == DataSource(file)
    odd = tmp_path / "data:3"
    odd.write_text("x")
    assert DataSource.parse(str(odd)) == DataSource(odd)
    for weight in ("0", "-1", "nan", "1e9"):
        with pytest.raises(DataError, match="weight"):
            DataSource.parse(f"{file}:{weight}")


def test_a_folder_stands_for_its_files(tmp_path) -> None:
    for name in ("b.txt", "a.jsonl", "notes.md"):
        (tmp_path / name).write_text(json.dumps(GOOD))
    assert [file.name for file in DataSource.parse(str(tmp_path)).files()] == ["a.jsonl", "b.txt"]


def test_held_out_documents_are_not_learnt_from(tmp_path) -> None:
    lines = [json.dumps({"question": f"Number {number}?", "answer": "Yes."}) for number in range(100)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    corpus, again = (read_corpus([str(tmp_path / "data.jsonl")], [], seed=3) for _ in range(2))
    assert corpus == again
    assert len(corpus.held_out) == 2
    assert not set(corpus.held_out) & set(corpus.documents)
    assert len(corpus.documents) == 98
    given = read_corpus([f"{tmp_path}/data.jsonl:2"], [str(tmp_path / "data.jsonl")], seed=3)
    assert len(given.documents) == len(given.held_out) == 100
    assert set(given.by_weight) == {2.0}


def test_one_document_is_not_enough_for_both(tmp_path) -> None:
    (tmp_path / "data.jsonl").write_text(json.dumps(GOOD))
    with pytest.raises(DataError, match="held out"):
        read_corpus([str(tmp_path / "data.jsonl")], [], seed=0)


def test_the_chat_template_writes_what_training_saw(tmp_path) -> None:
    (tmp_path / "data.jsonl").write_text(json.dumps(GOOD) + "\n" + json.dumps({"question": "2 + 3?", "answer": "5"}))
    dialogues = read_documents([tmp_path / "data.jsonl"])
    chat = ChatFormat()
    raw = train_tokenizer([turn.text for dialogue in dialogues for turn in dialogue], vocab_size=300, chat=chat)
    save_tokenizer(raw, tmp_path / "tokenizer", chat=chat, max_length=64)
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    messages = [{"role": turn.role, "content": turn.text} for turn in dialogues[0]]
    stream = encode(dialogues[:1], raw, chat)
    assert tokenizer.encode_chat(messages, add_generation_prompt=False) == stream.tokens.tolist()
    reply = tokenizer.decode(stream.tokens[stream.reply].tolist())
    assert reply == "Hi! How can I help?"


def test_digits_are_tokens_of_their_own() -> None:
    tokenizer = train_tokenizer(["12345 12345 12345 2024 2024 2024"] * 20, vocab_size=300, chat=ChatFormat())
    assert [len(token.lstrip("Ġ")) for token in tokenizer.encode("2024").tokens] == [1, 1, 1, 1]


def test_a_vocabulary_without_room_for_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match="too small"):
        train_tokenizer(["a"], vocab_size=100, chat=ChatFormat())


def test_plain_text_has_no_markers(tmp_path) -> None:
    chat = ChatFormat()
    tokenizer = train_tokenizer(["Once upon a time."], vocab_size=300, chat=chat)
    stream = encode([(Turn(None, "Once upon a time."),)], tokenizer, chat)
    assert tokenizer.decode(stream.tokens.tolist(), skip_special_tokens=False) == "<|bos|>Once upon a time."
    assert not stream.reply.any()
