"""What a shell sees: completion of commands and flags, a help that costs nothing, colours only where wanted."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.cli.conftest import root


def paceline(*arguments: str, code: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    how = ["-m", "paceline.cli.main"] if code is None else ["-c", code]
    return subprocess.run(
        [sys.executable, *how, *arguments],
        capture_output=True,
        text=True,
        cwd=root(),
        env=os.environ | variables,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "completed"),
    [("paceline do", "doctor"), ("paceline serve --block", "--block-size"), ("paceline config ", "show")],
)
def test_completion(words, completed):
    number = str(len(words.split(" ")) - 1)
    done = paceline(_PACELINE_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=number)
    assert completed in done.stdout.split()
    assert done.stderr == ""


def test_completion_can_be_installed():
    done = paceline("--show-completion", "bash")
    assert "complete " in done.stdout
    assert "_PACELINE_COMPLETE" in done.stdout


def test_help_and_settings_need_no_torch():
    code = (
        "import sys; from paceline.cli.main import run; codes = [run(words.split()) for words in sys.argv[1:]];"
        "sys.exit(repr([codes, [name for name in ('torch', 'numpy', 'fastapi', 'httpx') if name in sys.modules]]))"
    )
    done = paceline("--help", "serve --help", "doctor --help", "config show", "config init -", code=code)
    assert done.stderr.strip() == repr([[0] * 5, []])


def test_output_for_programs_has_no_colours():
    done = paceline("config", "show", NO_COLOR="1", FORCE_COLOR="")
    assert "\x1b" not in done.stdout
    assert paceline("config", "show").stdout == done.stdout
