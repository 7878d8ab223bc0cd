"""``paceline chat`` through a pipe: one answer per line, remembered until /new."""

from __future__ import annotations

import io

from paceline.cli.main import run
from tests.cli.conftest import model_arguments


def talk(pair, capsys, monkeypatch, *lines: str, options: tuple[str, ...] = ()) -> list[str]:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    assert run(["chat", *model_arguments(pair), "--max-tokens", "8", "--temperature", "0", *options]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return [line for line in captured.out.split("\n") if line]


def test_each_line_gets_an_answer_and_exit_ends(pair, capsys, monkeypatch):
    assert len(talk(pair, capsys, monkeypatch, "Hi", "And now?", "/exit", "never read")) == 2


def test_new_forgets_the_conversation(pair, capsys, monkeypatch):
    first, again = talk(pair, capsys, monkeypatch, "Hi", "/new", "Hi")
    assert first == again


def test_conversation_past_the_context_is_refused_with_the_limit(pair, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("long " * 300 + "\n"))
    assert run(["chat", *model_arguments(pair)]) == 2
    assert "context length is 256 tokens" in capsys.readouterr().err
