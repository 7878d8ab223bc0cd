"""The frozen list of flags, which scripts rely on; those of the settings come from dataclasses and grow with them."""

from __future__ import annotations

import pytest
from typer.main import get_command

from paceline.cli.main import app, run
from paceline.cli.settings import ENGINE, LIMITS, MODEL, SECTIONS, SERVICE, SPECULATION
from paceline.core.settings import settings_of
from paceline.training.head_options import DFlashOptions, Eagle3Options, MedusaOptions, MtpOptions
from paceline.training.options import DraftOptions, EvaluateOptions, TargetOptions

RUNS_A_MODEL = (MODEL, SPECULATION, ENGINE)
SAMPLING = {"max_tokens", "temperature", "top_p", "seed"}
# Command -> its own parameters, and the sections whose settings it has.
COMMANDS = {
    "serve": (set(), (*RUNS_A_MODEL, SERVICE, LIMITS)),
    "chat": ({"system", *SAMPLING}, RUNS_A_MODEL),
    "generate": ({"prompt", "top_k", "min_p", "stop", "ignore_eos", "as_chat", "as_json", *SAMPLING}, RUNS_A_MODEL),
    "demo": ({"as_json"}, RUNS_A_MODEL),
    "config show": ({"as_json"}, SECTIONS),
    "doctor": ({"as_json"}, SECTIONS),
}
WITHOUT_SETTINGS = {
    "models": {"as_json"},
    "quantize": {"model", "out", "scheme", "group_size", "text", "compare", "force", "revision", "as_json"},
    "config init": {"path", "user", "force"},
}
RECIPES = {
    "train target": TargetOptions,
    "train draft": DraftOptions,
    "train eagle3": Eagle3Options,
    "train medusa": MedusaOptions,
    "train mtp": MtpOptions,
    "train dflash": DFlashOptions,
    "train evaluate": EvaluateOptions,
}
FLAGS = {"out": "OUT", "as_json": "--json", "as_chat": "--chat", "model": "MODEL", "path": "PATH"}


def command_of(name: str):
    command = get_command(app)
    for part in name.split():
        command = command.commands[part]
    return command


def parameters_of(name: str) -> set[str]:
    return {parameter.name for parameter in command_of(name).params}


def leaves(command, prefix: str = "") -> set[str]:
    if not hasattr(command, "commands"):
        return {prefix.strip()}
    return {leaf for name, one in command.commands.items() for leaf in leaves(one, f"{prefix} {name}")}


def test_commands():
    benches = {name for name in leaves(get_command(app)) if name.startswith("bench ")}
    assert leaves(get_command(app)) - benches == {*COMMANDS, *WITHOUT_SETTINGS, *RECIPES}
    assert benches


def test_every_benchmark_that_runs_a_model_here_has_its_settings():
    derived = {setting.parameter for section in RUNS_A_MODEL for setting in settings_of(section.kind).values()}
    for name in ("latency", "throughput"):
        assert derived | {"config"} <= parameters_of(f"bench {name}") | {"seed"}


@pytest.mark.parametrize("name", COMMANDS)
def test_flags_of_commands_with_settings(name):
    own, sections = COMMANDS[name]
    derived = {setting.parameter for section in sections for setting in settings_of(section.kind).values()}
    assert parameters_of(name) == own | derived | {"config"}


@pytest.mark.parametrize("name", WITHOUT_SETTINGS)
def test_flags_of_other_commands(name):
    assert parameters_of(name) == WITHOUT_SETTINGS[name]


@pytest.mark.parametrize("name", RECIPES)
def test_flags_of_recipes(name):
    assert parameters_of(name) == {*settings_of(RECIPES[name]), "config", "as_json"}


def test_no_two_settings_share_a_flag():
    names = [setting.parameter for section in SECTIONS for setting in settings_of(section.kind).values()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", [*COMMANDS, *WITHOUT_SETTINGS, *RECIPES])
def test_help_names_and_explains_every_option(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    assert run([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    for parameter in command_of(name).params:
        flag = FLAGS.get(parameter.name, f"--{parameter.name.replace('_', '-')}")
        assert flag.lower() in text.lower()
        assert parameter.help
