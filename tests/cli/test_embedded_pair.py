"""The commands without a model: the pair that comes with the package."""

from __future__ import annotations

import json

import pytest

from paceline.cli import demo as demo_command
from paceline.cli.comparison import Question
from paceline.cli.main import run


def generated(capsys: pytest.CaptureFixture[str], *options: str) -> dict:
    assert (
        run(["generate", "--chat", "--prompt", "A table for two, please.", "--max-tokens", "32", "--json", *options])
        == 0
    )
    return json.loads(capsys.readouterr().out)


def test_pair_speculates_by_default_and_unseen(capsys):
    speculated, plain = generated(capsys), generated(capsys, "--no-speculation")
    assert speculated["token_ids"] == plain["token_ids"]
    assert speculated["metrics"]["num_accepted"] > 0
    assert plain["metrics"]["num_drafted"] == 0


def test_demo_of_the_pair(capsys, monkeypatch):
    monkeypatch.setattr(demo_command, "QUESTIONS", (Question("A table for two?", max_tokens=24),))
    assert run(["demo", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["identical"]
    assert found["acceptance"] > 0
