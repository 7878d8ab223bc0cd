"""``paceline demo`` against a real service of a tiny pair; and that it fails when speculation shows."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from paceline.cli import demo as demo_command
from paceline.cli.comparison import Question, ServiceComparison, StreamedAnswer, summary
from paceline.cli.main import run
from tests.cli.conftest import model_arguments, root

QUESTIONS = (Question("A table for two?", max_tokens=16), Question("A film?", 0.7, seed=3, max_tokens=16))


def test_json_of_a_run_on_the_real_service(pair, capsys, monkeypatch):
    monkeypatch.setattr(demo_command, "QUESTIONS", QUESTIONS)
    assert run(["demo", *model_arguments(pair), "--num-speculative-tokens", "3", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    found = json.loads(captured.out)
    assert found["identical"] is True
    assert found["speculative_config"]["num_speculative_tokens"] == 3
    assert found["num_accepted"] <= found["num_drafted"] > 0
    assert found["num_pairs"] == 4
    assert found["speedup"] > 0
    for question in found["questions"]:
        assert question["texts_off"] == question["texts_on"] == [question["text"]] * 2
        assert "".join(text for text, _ in question["spans"]) == question["text"]


def fake_service(monkeypatch: pytest.MonkeyPatch, texts: dict[bool, str]) -> None:
    @contextlib.contextmanager
    def service(_arguments: list[str]) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(base_url="http://nowhere")

    def ask(_client: object, _question: Question, *, speculation: bool, show: object = None) -> StreamedAnswer:
        return StreamedAnswer([(texts[speculation], False)], 5, 0.01 if speculation else 0.02, 4 * speculation, 0, 1.0)

    monkeypatch.setattr(demo_command, "running_service", service)
    monkeypatch.setattr(demo_command, "ask", ask)


def test_texts_that_differ_fail_and_are_said_to(capsys, monkeypatch):
    fake_service(monkeypatch, {False: "plain", True: "other"})
    assert run(["demo"]) == 1
    captured = capsys.readouterr()
    assert "NO" in captured.out
    assert "the texts differ" in captured.err


def test_table_of_texts_that_agree(capsys, monkeypatch):
    fake_service(monkeypatch, {False: "same", True: "same"})
    assert run(["demo"]) == 0
    captured = capsys.readouterr()
    assert "2.00x" in captured.out
    assert "0/32" not in captured.out.splitlines()[0]
    assert captured.err == ""


@pytest.mark.parametrize(("verifier", "code"), [("match", 1), ("block", 0)])
def test_only_some_verifiers_may_change_what_is_sampled(verifier, code, capsys, monkeypatch):
    fake_service(monkeypatch, {False: "plain", True: "other"})
    monkeypatch.setattr(demo_command, "QUESTIONS", QUESTIONS[1:])
    assert QUESTIONS[1].temperature > 0
    arguments = ["demo", "--speculative-config", json.dumps({"method": "ngram", "verifier": verifier})]
    assert run(arguments) == code
    monkeypatch.setattr(demo_command, "QUESTIONS", QUESTIONS)
    assert run(arguments) == 1
    assert "the texts differ" in capsys.readouterr().err


def test_summary_is_of_pairs_and_of_steps():
    def answer(seconds: float, drafted: int, accepted: int, length: float) -> StreamedAnswer:
        return StreamedAnswer([("x", False)], 11, seconds, drafted, accepted, length)

    one = ServiceComparison(
        Question("?"), [answer(0.2, 0, 0, 1.0)] * 2, [answer(0.1, 20, 10, 2.2), answer(0.05, 20, 5, 1.1)]
    )
    found = summary([one])
    assert found["speedup"] == pytest.approx(3.0)
    assert found["acceptance"] == pytest.approx(15 / 40)
    assert found["mean_acceptance_length"] == pytest.approx(22 / 15)
    assert found["tokens_per_second_off"] == pytest.approx(5.0)
    assert found["identical"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_interrupted_demo_stops_its_service(pair, number, code):
    command = [sys.executable, "-u", "-m", "paceline.cli.main", "demo", *model_arguments(pair)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root()) as demo:
        assert demo.stdout is not None
        port = 0
        for line in demo.stdout:
            if "http://" in line:
                port = int(line.partition("127.0.0.1:")[2].partition(";")[0])
                break
        demo.send_signal(number)
        _, errors = demo.communicate(timeout=60)
    assert demo.returncode == code
    assert errors == ""
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
