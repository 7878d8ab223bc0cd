"""Flags win over the file, the file over the preset, the preset over defaults; what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from paceline.cli.main import run
from paceline.core.errors import ConfigError
from paceline.core.settings import settings_of
from paceline.training.options import DraftOptions, EvaluateOptions, TargetOptions
from paceline.training.settings import resolve

GIVEN = {"data": ["a.jsonl"], "out": Path("out")}


def config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_who_wins(tmp_path) -> None:
    path = config(tmp_path, 'preset = "small"\nhidden_size = 64\nbatch-size = 3\nlearning_rate = 1')
    options = resolve(TargetOptions, GIVEN | {"batch_size": 5}, path)
    assert (options.batch_size, options.hidden_size, options.num_layers, options.seed) == (5, 64, 10, 0)
    assert options.learning_rate == 1.0
    assert options.data == ("a.jsonl",)


def test_a_file_can_say_everything(tmp_path) -> None:
    path = config(tmp_path, 'data = ["a", "b:2"]\nout = "x"\ntarget = "t"\ncompile = false\nhuman_weight = 0.5')
    options = resolve(DraftOptions, {}, path)
    assert options == DraftOptions(data=("a", "b:2"), out=Path("x"), target=Path("t"), compile=False, human_weight=0.5)
    assert options.work_directory == Path("x.work")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("stepz = 3", "unknown key 'stepz'"),
        ('steps = "many"', "steps must be an integer"),
        ("steps = true", "steps must be an integer"),
        ("steps = 0", "steps must be an integer of at least 1"),
        ("learning_rate = 0", "learning_rate must be a number above 0"),
        ("learning_rate = nan", "learning_rate must be a number above 0"),
        ("compile = 1", "compile must be true or false"),
        ("data = [1]", "data must be text or a list"),
        ('preset = "huge"', "must be one of tiny, small"),
        ("[target]\nsteps = 1", "unknown key 'target'"),
        ("steps =", "not TOML"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path, text: str, named: str) -> None:
    path = config(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        resolve(TargetOptions, GIVEN, path)
    assert named in str(error.value)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 2


def test_a_file_that_cannot_be_read_is_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read"):
        resolve(TargetOptions, GIVEN, tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9")
    with pytest.raises(ConfigError, match=r"latin\.toml: not UTF-8"):
        resolve(TargetOptions, GIVEN, tmp_path / "latin.toml")


def test_what_is_missing_or_wrong_is_named_by_its_flag() -> None:
    with pytest.raises(ConfigError, match="--data is missing"):
        resolve(TargetOptions, {"out": Path("out")})
    with pytest.raises(ConfigError, match="--target is missing"):
        resolve(EvaluateOptions, {"data": ["x"]})
    with pytest.raises(ConfigError, match="--batch-size must be an integer of at least 1"):
        resolve(TargetOptions, GIVEN | {"batch_size": 0})


@pytest.mark.parametrize("heads", [{"num_kv_heads": 4}, {"head_dim": 15}])
def test_shapes_that_cannot_be(heads) -> None:
    with pytest.raises(ConfigError, match="Change --"):
        _ = resolve(TargetOptions, GIVEN | heads).shape


@pytest.mark.parametrize("kind", [TargetOptions, DraftOptions])
def test_presets_name_options_with_values_that_may_be(kind) -> None:
    for name in kind.PRESETS:
        assert resolve(kind, GIVEN | {"target": Path("t")} | {"preset": name} if kind is DraftOptions else GIVEN).shape


@pytest.mark.parametrize("command", ["target", "draft", "evaluate"])
def test_every_option_is_a_flag(command: str, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    kind = {"target": TargetOptions, "draft": DraftOptions, "evaluate": EvaluateOptions}[command]
    assert run(["train", command, "--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in text for name in [*settings_of(kind), "config", "json"])
