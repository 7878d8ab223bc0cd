"""Every refusal is a cause and a fix on standard error, with exit code 2 and no traceback."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys

import pytest

from paceline.cli.main import run
from tests.cli.conftest import root

PROMPT = ["--prompt", "x"]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    assert run(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    cause, fix = captured.err.rstrip("\n").split("\n")
    return cause, fix


def test_unknown_option(capsys):
    cause, fix = refusal(capsys, "generate", "--frobnicate")
    assert "--frobnicate" in cause
    assert fix == "See paceline generate --help."


def test_unknown_command(capsys):
    assert "frobnicate" in refusal(capsys, "frobnicate")[0]


def test_value_of_the_wrong_type(capsys):
    assert "--max-tokens" in refusal(capsys, "generate", "--max-tokens", "many")[0]


def test_parameter_out_of_range(capsys):
    assert "temperature must be" in refusal(capsys, "generate", *PROMPT, "--temperature", "-1")[0]


def test_missing_model(capsys, tmp_path):
    cause, fix = refusal(capsys, "generate", str(tmp_path / "nowhere"), *PROMPT)
    assert "nowhere" in cause
    assert fix.startswith("Give a model directory")


def test_unknown_part(capsys, pair):
    cause, fix = refusal(capsys, "generate", pair[0], "--cache", "heap", *PROMPT)
    assert "'heap'" in cause
    assert "paged" in fix


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--num-speculative-tokens", "3"], "--draft"),
        (["--draft", "a", "--no-speculation"], "--no-speculation"),
        (["--draft", "a", "--speculative-config", "{}"], "--speculative-config"),
        (["--speculative-config", "{"], "JSON"),
        (["--speculative-config", "{}"], "method"),
        (["--speculative-config", '{"method": "telepathy"}'], "telepathy"),
    ],
)
def test_speculation_options_that_cannot_work(capsys, pair, options, named):
    assert named in " ".join(refusal(capsys, "generate", pair[0], *options, *PROMPT))


def test_busy_port_names_another_before_loading_the_model(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        cause, fix = refusal(capsys, "serve", "no/such-model", "--port", str(port))
    assert str(port) in cause
    assert re.search(r"--port \d+", fix)


def test_demo_needs_a_drafter(capsys, pair):
    assert "--draft DIR" in refusal(capsys, "demo", pair[0])[1]


def test_demo_repeats_the_cause_that_the_service_gave(capsys, pair, tmp_path):
    cause, fix = refusal(capsys, "demo", pair[0], "--draft", str(tmp_path / "nowhere"), "--json")
    assert "nowhere" in cause
    assert fix.startswith("Give a model directory")


def test_environment_variables_set_options(capsys, pair, monkeypatch):
    monkeypatch.setenv("PACELINE_CACHE", "heap")
    assert "'heap'" in refusal(capsys, "generate", pair[0], *PROMPT)[0]


def test_error_is_red_on_a_terminal_only(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run(["generate", "--frobnicate"]) == 2
    assert "\x1b[31m" in capsys.readouterr().err


def test_output_that_nobody_reads_ends_the_command_quietly(pair):
    command = [sys.executable, "-m", "paceline.cli.main", "generate", pair[0], *PROMPT, "--max-tokens", "4"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=root(), check=False)
    os.close(writer)
    assert (done.stderr, done.returncode) == ("", 1)
