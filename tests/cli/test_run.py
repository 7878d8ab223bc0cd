"""run.py and what it stands on: what it installs, when, and what it says when it cannot."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections import namedtuple
from types import ModuleType

import pytest

from scripts import check_banned, environment
from tests.cli.conftest import root

CPU_INDEX = "https://download.pytorch.org/whl/cpu"

SOURCES = "paceline/kernels/native/csrc"


@pytest.fixture
def runner() -> ModuleType:
    specification = importlib.util.spec_from_file_location("paceline_run", root() / "run.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def setup(tmp_path, monkeypatch) -> list[tuple[str, ...]]:
    """An empty .venv whose pip only notes what it is asked for."""
    installed: list[tuple[str, ...]] = []
    for name in ("pyproject.toml", "constraints.txt", "setup.py"):
        shutil.copy(root() / name, tmp_path)
    shutil.copytree(root() / SOURCES, tmp_path / SOURCES)
    for name, value in {
        "ROOT": tmp_path,
        "VENV": tmp_path / ".venv",
        "STAMP": tmp_path / ".venv" / "stamp.json",
        "LOG": tmp_path / ".venv" / "setup.log",
        "PYTHON": tmp_path / ".venv" / "python",
    }.items():
        monkeypatch.setattr(environment, name, value)

    def create() -> None:
        environment.VENV.mkdir(exist_ok=True)
        environment.PYTHON.touch()

    monkeypatch.setattr(environment, "create_venv", create)
    monkeypatch.setattr(environment, "sees_gpu", lambda: False)
    monkeypatch.setattr(environment, "reaches_cpu_index", lambda: True)
    monkeypatch.setattr(environment, "pip_install", lambda what, arguments: installed.append(tuple(arguments)))
    for name in ("CI", "PACELINE_TORCH"):
        monkeypatch.delenv(name, raising=False)
    return installed


def two_lines(error: pytest.ExceptionInfo[environment.SetupError]) -> tuple[str, str]:
    cause, fix = str(error.value).split("\n")
    return cause, fix


def test_old_python_is_named_with_what_is_needed():
    with pytest.raises(environment.SetupError) as error:
        environment.check_python((3, 9))
    assert "3.9 is too old" in two_lines(error)[0]
    assert "python3.11 run.py" in two_lines(error)[1]
    environment.check_python((3, 11))


@pytest.mark.parametrize("missing", ["venv", "ensurepip"])
def test_missing_venv_module_is_named_with_the_package(monkeypatch, missing):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(environment.SetupError) as error:
        environment.check_venv_modules()
    assert missing in two_lines(error)[0]
    assert "apt install python3-venv" in two_lines(error)[1]


def test_full_disk_is_named_before_anything_is_downloaded(setup, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10, 10, int(0.4e9)))
    with pytest.raises(environment.SetupError) as error:
        environment.prepare("serve")
    assert "0.4 GB free; about 1.5 GB" in two_lines(error)[0]
    assert setup == []


def test_torch_comes_first_and_only_once(setup):
    environment.prepare("test")
    assert [arguments[0] for arguments in setup] == ["torch==2.13.0", "-e"]
    assert CPU_INDEX in setup[0]
    assert setup[1][1] == ".[test]"
    environment.prepare("test")
    environment.prepare("serve")
    assert len(setup) == 2
    environment.prepare("dev")
    assert [arguments[:2] for arguments in setup[2:]] == [("-e", ".[dev]")]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt", "setup.py", f"{SOURCES}/linear.h"])
def test_changed_requirements_are_installed_again(setup, name):
    environment.prepare("serve")
    with (environment.ROOT / name).open("a") as file:
        file.write("\n# changed\n")
    environment.prepare("serve")
    assert len(setup) == 4


def test_broken_stamp_counts_as_none(setup):
    environment.prepare("serve")
    environment.STAMP.write_text(json.dumps(["serve"]))
    assert environment.installed_extras() == set()


@pytest.mark.parametrize(
    ("variables", "gpu_and_index", "expected"),
    [
        ({}, (False, True), [CPU_INDEX, None]),
        ({}, (False, False), [None]),
        ({}, (True, True), [None]),
        ({"CI": "true"}, (False, True), [None]),
        ({"PACELINE_TORCH": "cpu", "CI": "true"}, (True, True), [CPU_INDEX]),
        ({"PACELINE_TORCH": "default"}, (False, True), [None]),
    ],
)
def test_where_torch_comes_from(setup, monkeypatch, variables, gpu_and_index, expected):
    gpu, reached = gpu_and_index
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(environment, "reaches_cpu_index", lambda: reached)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    choices = environment.torch_choices(gpu=gpu)
    assert [CPU_INDEX if CPU_INDEX in arguments else None for _, arguments in choices] == expected
    assert all(arguments[0] == "torch==2.13.0" for _, arguments in choices)
    # What may download gigabytes on a machine without a GPU says so.
    assert [("several GB" in what) for what, _ in choices] == [index is None and not gpu for index in expected]


def test_torch_requirement_of_the_users_own(setup, monkeypatch):
    monkeypatch.setenv("PACELINE_TORCH", "torch==2.12.0")
    assert [arguments for _, arguments in environment.torch_choices(gpu=False)] == [["torch==2.12.0"]]


def test_second_source_is_tried_when_the_first_fails(setup, monkeypatch, capsys):
    def install(_what: str, arguments: list[str]) -> None:
        if CPU_INDEX in arguments:
            raise environment.SetupError("the index is down", "wait")
        setup.append(tuple(arguments))

    monkeypatch.setattr(environment, "pip_install", install)
    environment.prepare("serve")
    assert setup[0] == ("torch==2.13.0",)
    assert "the index is down" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "cause", "fix"),
    [
        ("WARNING: NewConnectionError(...)\nERROR: No matching distribution", "cannot reach", "network"),
        ("ERROR: [Errno 28] No space left on device", "disk ran full", "space"),
        ("ERROR: something else", "something else", "log"),
        ("", "pip failed", "log"),
    ],
)
def test_failure_of_pip_is_explained(output, cause, fix):
    first, second = str(environment.pip_failure(output)).split("\n")
    assert cause in first
    assert str(environment.LOG) in first
    assert fix in second


def test_unknown_command(runner, capsys):
    assert runner.main(["frobnicate"]) == 2
    cause, fix = capsys.readouterr().err.strip().split("\n")
    assert "frobnicate" in cause
    assert "demo" in fix


def test_help_needs_no_setup(runner, capsys):
    assert runner.main([]) == runner.main(["--help"]) == 0
    assert "PACELINE_TORCH" in capsys.readouterr().out


def test_arguments_are_passed_on(runner, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    for name in ("demo", "serve", "chat", "generate"):
        assert runner.commands(name, ["--json"])[0][1:] == ["-m", "paceline.cli.main", name, "--json"]
    assert runner.commands("test", ["-x"])[0][1:] == ["-m", "pytest", "-m", "not full", "-x"]
    assert runner.commands("test-all", ["-x"])[0][1:] == ["-m", "pytest", "-x"]
    assert runner.commands("lint", ["--fix"])[0][1:] == ["-m", "ruff", "check", "--fix"]


@pytest.mark.parametrize("name", ["test", "test-all"])
def test_the_whole_suite_runs_on_several_cores(runner, monkeypatch, name):
    """File by file: tests of a file share models. Whoever names tests wants to see them in order."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert runner.commands(name, [])[0][-4:] == ["-n", "2", "--dist", "loadfile"]
    assert "-n" not in runner.commands(name, ["tests/core"])[0]


@pytest.mark.parametrize("name", ["test", "test-all"])
def test_ci_shows_slow_tests_and_why_tests_are_skipped(runner, monkeypatch, name):
    monkeypatch.setenv("CI", "true")
    assert runner.commands(name, ["-x"])[0][-3:] == ["--durations=40", "-rs", "-x"]


def test_lint_reports_every_tool_that_failed(runner, monkeypatch, capsys):
    tried = []

    def fail(command: list[str], **_options: object) -> subprocess.CompletedProcess[str]:
        tried.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", fail)
    monkeypatch.chdir(root())
    assert runner.run("lint", []) == 1
    assert len(tried) == 7
    assert capsys.readouterr().err.count("failed:") == 7


@pytest.mark.parametrize(
    ("code", "banned"),
    [
        ("pickle.load(file)", True),
        ("from pickle import load", True),
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=True)", False),
        ("subprocess.run(text, shell=True)", True),
        ("subprocess.run(words)", False),
        ("model.eval()", False),
        ("ev" + "al(text)", True),
        ("ex" + "ec(text)", True),
    ],
)
def test_banned_calls(tmp_path, capsys, code, banned):
    (tmp_path / "module.py").write_text(code + "\n")
    assert check_banned.main([str(tmp_path)]) == int(banned)
    assert ("module.py:1" in capsys.readouterr().out) == banned
