"""A dialogue with other replies: what is asked is what the chat template would ask, only replies are marked."""

from __future__ import annotations

import json

import pytest
import torch

from paceline.core.errors import ConfigError
from paceline.text import Tokenizer
from paceline.training.conversation import Conversation
from paceline.training.data import ChatFormat, Turn
from paceline.training.held_out import HeldOut, repeated_share
from paceline.training.regenerate import KeptReplies
from paceline.training.stream import TokenStream, encode
from paceline.training.tokenizer import load_tokenizer

DIALOGUE = (
    Turn("system", "Be brief."),
    Turn("user", "What is a red lamp?"),
    Turn("assistant", "A human's reply."),
    Turn("user", "Thanks."),
    Turn("assistant", "Another."),
    Turn("user", "Nobody answers this."),
)


def messages(*turns: Turn) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def test_the_target_is_asked_as_the_chat_template_asks(toy) -> None:
    raw, tokenizer, chat = load_tokenizer(toy.target), Tokenizer.load(toy.target), ChatFormat()
    talk = Conversation(DIALOGUE, raw, chat, room=1000)
    assert talk.prompt() == tokenizer.encode_chat(messages(*DIALOGUE[:2]))
    reply = [*raw.encode("It shines.", add_special_tokens=False).ids, talk.end]
    talk.answer(reply)
    said = (*DIALOGUE[:2], Turn("assistant", "It shines."), DIALOGUE[3])
    assert talk.prompt() == tokenizer.encode_chat(messages(*said))
    talk.answer(reply[:1])  # cut off: the closing marker is not the target's
    assert talk.prompt() is None
    stream = talk.stream()
    assert stream.tokens[stream.reply].tolist() == reply + reply[:1]
    assert stream.tokens[-1] == talk.end
    assert not stream.reply[-1]


def test_a_conversation_ends_where_there_is_no_room(toy) -> None:
    talk = Conversation(DIALOGUE, load_tokenizer(toy.target), ChatFormat(), room=10)
    assert talk.prompt() is None
    assert talk.prompt() is None
    assert len(talk.stream().tokens) == 1


def test_markers_in_a_text_are_text(toy) -> None:
    chat, tokenizer = ChatFormat(), load_tokenizer(toy.target)
    stream = encode([(Turn("user", "I say <|end|><|assistant|>."),)], tokenizer, chat)
    assert (stream.tokens == tokenizer.token_to_id(chat.end)).sum() == 1


def test_a_tokenizer_without_markers_is_refused(toy, tmp_path) -> None:
    values = json.loads((toy.target / "tokenizer.json").read_text().replace("<|assistant|>", "<|helper|>"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"no token <\|assistant\|>"):
        encode([DIALOGUE], load_tokenizer(tmp_path), ChatFormat())


def streams(*sizes: int) -> list[TokenStream]:
    return [TokenStream(torch.arange(size), torch.arange(size) % 2 == 0) for size in sizes]


def test_kept_replies_survive_a_line_cut_short(tmp_path) -> None:
    kept = KeptReplies(tmp_path / "work" / "replies.jsonl", [], key="key", target="one")
    assert kept.read() == []
    kept.append(streams(3, 5))
    kept.append(streams(4))
    with kept.path.open("a") as file:
        file.write('[{"tokens": [1, 2')
    assert [len(one.tokens) for one in kept.read()] == [3, 5, 4]
    kept.append(streams(6))
    read = kept.read()
    assert [one.tokens.tolist() for one in read] == [one.tokens.tolist() for one in streams(3, 5, 4, 6)]
    assert [one.reply.tolist() for one in read] == [one.reply.tolist() for one in streams(3, 5, 4, 6)]


def test_replies_of_another_run_are_refused(tmp_path) -> None:
    KeptReplies(tmp_path / "replies.jsonl", [], key="key", target="one").append(streams(3))
    with pytest.raises(ConfigError, match="--work"):
        KeptReplies(tmp_path / "replies.jsonl", [], key="other", target="one").read()


def test_a_file_killed_in_its_first_line_is_begun_anew(tmp_path) -> None:
    (tmp_path / "replies.jsonl").write_text('{"key": "k')
    kept = KeptReplies(tmp_path / "replies.jsonl", [], key="key", target="one")
    assert kept.read() == []
    kept.append(streams(3))
    assert len(kept.read()) == 1


def test_repeated_4_grams() -> None:
    assert repeated_share([[1, 2, 3]]) is None
    assert repeated_share([[1, 2, 3, 4, 5], [1, 2, 3, 4]]) == 0  # in another reply is not a repetition
    assert repeated_share([[1, 1, 1, 1, 1, 1]]) == pytest.approx(2 / 3)
    assert repeated_share([[1, 2, 3, 4, 1, 2, 3, 4]]) == pytest.approx(1 / 5)


@pytest.mark.parametrize(("length", "count", "shape"), [(10, 3, (3, 11)), (10, 99, (4, 11)), (1000, 5, (1, 45))])
def test_held_out_rows_are_spread_and_stay_inside(length: int, count: int, shape: tuple[int, int]) -> None:
    (stream,) = streams(45)
    held_out = HeldOut.of(stream, length=length, count=count)
    assert held_out.tokens.shape == shape
    assert len(set(held_out.rows[:, 0].tolist())) == shape[0]
