"""Flags win over variables, those over files, those over defaults; what is wrong is named where it stands."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest

from paceline.cli.config import template
from paceline.cli.main import run
from paceline.cli.settings import SECTIONS
from paceline.core.errors import ConfigError
from paceline.core.resolution import MASK, Section, resolve
from paceline.core.settings import About, settings_of
from tests.cli.conftest import model_arguments, root


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def shown(capsys, *arguments: str) -> dict[str, tuple[Any, str, str | None]]:
    """Setting -> value, kind of source, its name."""
    assert run(["config", "show", "--json", *arguments]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    return {f"{one['section']}.{one['name']}": (one["value"], one["source"], one["from"]) for one in settings}


def refusal(capsys, *arguments: str) -> tuple[str, str]:
    assert run(["config", "show", *arguments]) == 2
    cause, fix = capsys.readouterr().err.strip().splitlines()
    return cause, fix


def test_each_source_wins_over_the_next(capsys, directory, monkeypatch):
    path = write(
        directory / "paceline.toml",
        'model = "m"\n[engine]\nblock_size = 2\nseed = 2\nmax-num-seqs = 2\n[limits]\nwrite_seconds = 2',
    )
    monkeypatch.setenv("PACELINE_SEED", "3")
    monkeypatch.setenv("PACELINE_MAX_NUM_SEQS", "3")
    monkeypatch.setenv("PACELINE_ENABLE_PREFIX_CACHING", "off")
    monkeypatch.setenv("PACELINE_DTYPE", "")
    found = shown(capsys, "--max-num-seqs", "4", "--no-speculation")
    assert found["engine.block_size"] == (2, "file", f"{path}: [engine] block_size")
    assert found[".model"] == ("m", "file", f"{path}: model")
    assert found["engine.seed"] == (3, "environment", "PACELINE_SEED")
    assert found["engine.max_num_seqs"] == (4, "flag", "--max-num-seqs")
    assert found["engine.enable_prefix_caching"] == (False, "environment", "PACELINE_ENABLE_PREFIX_CACHING")
    assert found[".speculation"] == (False, "flag", "--no-speculation")
    assert found["limits.write_seconds"][0] == 2.0
    assert found["engine.dtype"] == ("auto", "default", None)


def test_a_flag_at_its_default_still_wins(capsys, directory):
    write(directory / "paceline.toml", "[engine]\nblock_size = 2\nenable_prefix_caching = false")
    found = shown(capsys, "--block-size", "16", "--enable-prefix-caching")
    assert found["engine.block_size"] == (16, "flag", "--block-size")
    assert found["engine.enable_prefix_caching"] == (True, "flag", "--enable-prefix-caching")


def test_which_files_are_read(capsys, directory, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(directory / "home"))
    write(directory / "home" / "paceline" / "paceline.toml", "[engine]\nblock_size = 1\nseed = 1")
    assert shown(capsys)["engine.block_size"][0] == 1
    write(directory / "paceline.toml", "[engine]\nblock_size = 2")
    found = shown(capsys)
    assert (found["engine.block_size"][0], found["engine.seed"][0]) == (2, 1)
    monkeypatch.setenv("PACELINE_CONFIG", str(write(directory / "variable.toml", "[engine]\nblock_size = 3")))
    found = shown(capsys)
    assert (found["engine.block_size"][0], found["engine.seed"][0]) == (3, 0)
    flag = write(directory / "flag.toml", "[engine]\nblock_size = 4")
    assert shown(capsys, "--config", str(flag))["engine.block_size"][0] == 4


@pytest.mark.parametrize(
    ("text", "named", "fix"),
    [
        ("[engin]\nseed = 1", "unknown section [engin]", "Did you mean engine?"),
        ("[engine]\nblock_sise = 1", "unknown key [engine] block_sise", "Did you mean block_size?"),
        ("[engine]\nxyz = 1", "unknown key [engine] xyz", "Choose from: dtype, "),
        ("seed = 1", "unknown key seed", "Choose from: model, speculation"),
        ("engine = 1", "engine must be a section", "Write [engine]"),
        ('[engine]\nseed = "a"', "[engine] seed must be an integer in [-9", "Correct it"),
        ("[engine]\nseed = true", "[engine] seed must be an integer", "Correct it"),
        ("[engine]\nblock_size = 5000", "[engine] block_size must be an integer in [1, 4096], got 5000", "Correct it"),
        ("[engine]\nenable_prefix_caching = 1", "must be true or false, got 1", "Correct it"),
        ("[limits]\nwrite_seconds = nan", "[limits] write_seconds must be a number above 0, got nan", "Correct it"),
        ("[limits]\nwrite_seconds = inf", "[limits] write_seconds must be a number above 0, got inf", "Correct it"),
        ("[service]\nport = 70000", "[service] port must be an integer in [0, 65535]", "Correct it"),
        ("[engine", "not TOML", "Correct the file"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(capsys, directory, text, named, fix):
    path = write(directory / "paceline.toml", text)
    cause, advice = refusal(capsys)
    assert cause.startswith(f"error: {path}: ")
    assert named in cause
    assert fix in advice


def test_a_file_that_is_not_there_is_told_by_who_named_it(capsys, monkeypatch):
    cause, fix = refusal(capsys, "--config", "none.toml")
    assert "none.toml: cannot be read" in cause
    assert "--config" in fix
    monkeypatch.setenv("PACELINE_CONFIG", "none.toml")
    assert "PACELINE_CONFIG" in refusal(capsys)[1]


@pytest.mark.parametrize("value", ["0", "many", "1.5", "9" * 5000, "true"])
def test_a_wrong_variable_is_named(capsys, monkeypatch, value):
    monkeypatch.setenv("PACELINE_BLOCK_SIZE", value)
    cause, fix = refusal(capsys)
    assert "PACELINE_BLOCK_SIZE must be an integer in [1, 4096], got" in cause
    assert len(cause) < 200
    assert fix == "Correct or unset PACELINE_BLOCK_SIZE."


def test_a_wrong_flag_is_named(capsys):
    assert "--block-size must be an integer in [1, 4096], got 0" in refusal(capsys, "--block-size", "0")[0]


def test_an_unknown_part_is_named_with_its_source_before_the_model_is_read(capsys, directory, pair):
    path = write(directory / "paceline.toml", '[engine]\ncache = "heap"')
    assert run(["generate", "no/such-model", "--prompt", "x"]) == 2
    cause, fix = capsys.readouterr().err.strip().splitlines()
    assert cause == f"error: {path}: [engine] cache: unknown cache 'heap'"
    assert "paged" in fix


def test_the_file_reaches_the_engine(capsys, directory, pair):
    write(directory / "paceline.toml", "[engine]\nmax_model_len = 8")
    assert run(["generate", *model_arguments(pair), "--prompt", "a b c d e f g h i j k l m"]) == 2
    assert "context length is 8 tokens" in capsys.readouterr().err


def test_init_writes_defaults_that_are_read_back(capsys, directory, monkeypatch):
    assert run(["config", "init"]) == 0
    path = directory / "paceline.toml"
    capsys.readouterr()
    assert {one[1] for one in shown(capsys).values()} == {"default"}
    lines = path.read_text().splitlines()
    values = [line.removeprefix("# ") for line in lines if " = " in line and " =   #" not in line]
    uncommented = "\n".join([*(line for line in lines if line.startswith("[")), ""])
    assert set(tomllib.loads(uncommented)) == {section.name for section in SECTIONS} - {""}
    for line in values:
        assert len(tomllib.loads(line)) == 1
    names = {line.split(" = ")[0] for line in (line.removeprefix("# ") for line in lines if " = " in line)}
    assert names >= {name for section in SECTIONS for name in settings_of(section.kind)}
    assert run(["config", "init"]) == 2
    assert "--force" in capsys.readouterr().err
    assert run(["config", "init", "--force"]) == 0
    monkeypatch.setenv("XDG_CONFIG_HOME", str(directory / "home"))
    assert run(["config", "init", "--user"]) == 0
    assert (directory / "home" / "paceline" / "paceline.toml").read_text() == template()


def test_example_of_the_docs_is_a_file(capsys, directory):
    (example,) = re.findall(r"```toml\n(.*?)```", (root() / "docs" / "configuration.md").read_text(), flags=re.DOTALL)
    write(directory / "paceline.toml", example)
    found = shown(capsys)
    assert found["limits.max_requests"][:2] == (32, "file")
    assert found["speculative.method"][:2] == ("ngram", "file")


def test_text_of_show_has_every_setting_with_its_source(capsys, directory, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    path = write(directory / "paceline.toml", "[engine]\nseed = 5")
    assert run(["config", "show"]) == 0
    text = capsys.readouterr().out
    assert f"file: {path}" in text
    assert f"{path}: [engine] seed" in text
    for section in SECTIONS:
        assert all(section.place(name) in text for name in settings_of(section.kind))


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyed:
    api_key: Annotated[str | None, About("Key.", secret=True)] = None
    names: Annotated[tuple[str, ...], About("Names.")] = ()
    path: Annotated[Path | None, About("Path.")] = None


def test_secrets_are_masked_and_lists_come_from_everywhere():
    sections = [Section("keyed", Keyed, "")]
    variables = {"PACELINE_API_KEY": "sesame", "PACELINE_NAMES": "a, b"}
    found = resolve(sections, flags={"names": ["c"]}, environment=variables)
    assert found.found["keyed"]["api_key"].shown == MASK
    assert found.build(Keyed) == Keyed(api_key="sesame", names=("c",))
    assert resolve(sections, flags={"path": Path("x")}, environment={}).found["keyed"]["path"].shown == "x"
    assert resolve(sections, flags={}, environment=variables).build(Keyed).names == ("a", "b")
    with pytest.raises(ConfigError) as error:
        resolve(sections, flags={"api_key": 5}, environment={})
    assert "5" not in str(error.value)


def test_settings_that_hold_keys_are_secrets():
    for section in SECTIONS:
        for name, setting in settings_of(section.kind).items():
            held = setting.kind in (str, tuple) and name.endswith(("key", "keys", "secret", "password"))
            assert setting.about.secret == held, name


def test_a_field_without_about_is_a_mistake_of_ours():
    @dataclass
    class Bare:
        size: int = 3

    Bare.__annotations__["size"] = int
    with pytest.raises(TypeError, match=r"Bare\.size needs an About"):
        settings_of(Bare)
