"""Bad training data is named with its line; what training sees is what the chat template writes."""

from __future__ import annotations

import json

import pytest
import torch

from paceline.text import Tokenizer
from paceline.training.data import Blocks, ChatFormat, DataError, TokenStream, encode, read_dialogues
from paceline.training.tokenizer import save_tokenizer, train_tokenizer

GOOD = {"turns": [{"role": "user", "text": "Hello there."}, {"role": "assistant", "text": "Hi! How can I help?"}]}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"{", "not JSON"),
        (b"[]", "expected"),
        (b'{"turns": []}', "expected"),
        (b'{"turns": [{"role": "robot", "text": "x"}]}', "role"),
        (b'{"turns": [{"role": "user"}]}', "text"),
        (b'{"question": "1 + 1?"}', "text"),
    ],
)
def test_bad_lines_are_named(tmp_path, line: bytes, complaint: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_bytes(json.dumps(GOOD).encode() + b"\n\n" + line + b"\n")
    with pytest.raises(DataError, match=complaint) as error:
        read_dialogues([file])
    assert f"{file}:3" in str(error.value)


def test_no_data_is_an_error(tmp_path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no dialogue"):
        read_dialogues([tmp_path / "empty.jsonl"])


def test_the_chat_template_writes_what_training_saw(tmp_path) -> None:
    (tmp_path / "data.jsonl").write_text(json.dumps(GOOD) + "\n" + json.dumps({"question": "2 + 3?", "answer": "5"}))
    dialogues = read_dialogues([tmp_path / "data.jsonl"])
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


def test_a_step_sees_the_same_rows_whenever_it_runs() -> None:
    stream = TokenStream(torch.arange(1000), torch.zeros(1000, dtype=torch.bool))
    first, again = (Blocks(stream, length=10, batch_size=4, seed=1) for _ in range(2))
    for step in range(30):
        first.batch(step)
    assert torch.equal(first.batch(60)[0], again.batch(60)[0])
    assert not torch.equal(first.batch(60)[0], first.batch(61)[0])
    tokens, _ = first.batch(7)
    assert (tokens[:, 1:] == tokens[:, :-1] + 1).all()


def test_too_little_data_says_which_batch_size_fits() -> None:
    stream = TokenStream(torch.arange(35), torch.zeros(35, dtype=torch.bool))
    with pytest.raises(DataError, match="--batch-size to 3"):
        Blocks(stream, length=10, batch_size=8, seed=0)
