"""``paceline generate``: the JSON it prints, and that how it was made does not show in the text."""

from __future__ import annotations

import io
import json

import pytest

from paceline.cli.main import run
from tests.cli.conftest import model_arguments

PROMPT = ["--prompt", "The quick brown", "--max-tokens", "24", "--temperature", "0.8", "--seed", "5"]


def generated(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert run(["generate", *arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("\n") == 1
    return json.loads(captured.out)


def test_json_holds_text_tokens_and_metrics(pair, capsys):
    found = generated(capsys, *model_arguments(pair), *PROMPT)
    assert set(found) == {
        "model",
        "prompt",
        "text",
        "token_ids",
        "token_drafted",
        "finish_reason",
        "usage",
        "metrics",
    }
    assert found["prompt"] == "The quick brown"
    assert found["usage"]["completion_tokens"] == len(found["token_ids"]) == len(found["token_drafted"])
    assert found["metrics"]["num_accepted"] == sum(found["token_drafted"]) > 0


@pytest.mark.parametrize(
    "options",
    [
        ["--no-speculation"],
        ["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 3}'],
        ["--block-size", "4", "--max-num-batched-tokens", "7"],
    ],
)
def test_engine_options_are_invisible_in_the_text(pair, capsys, options):
    speculated = generated(capsys, *model_arguments(pair), *PROMPT)
    other = generated(capsys, pair[0], *options, *PROMPT)
    assert other["token_ids"] == speculated["token_ids"]
    assert other["text"] == speculated["text"]


def test_text_goes_to_standard_output_without_colours(pair, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("The quick brown"))
    assert run(["generate", *model_arguments(pair), *PROMPT[2:]]) == 0
    plain = capsys.readouterr().out
    text = generated(capsys, *model_arguments(pair), *PROMPT)["text"]
    # A model can write control characters; a terminal must not obey them.
    assert plain == "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text) + "\n"


def test_accepted_draft_tokens_are_coloured_on_a_terminal(pair, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run(["generate", *model_arguments(pair), *PROMPT]) == 0
    assert "\x1b[32m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    assert run(["generate", *model_arguments(pair), *PROMPT]) == 0
    assert "\x1b[32m" not in capsys.readouterr().out
