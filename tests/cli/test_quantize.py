"""``paceline quantize`` writes a directory that loads as what it said, over nothing that it was not told to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paceline import LLM, SamplingParams
from paceline.cli.main import run
from tests.support.checkpoints import tiny_llama

TEXT = "The quick brown fox jumps over the lazy dog. " * 12


@pytest.fixture
def text(tmp_path) -> str:
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


def test_figures_are_of_the_directory_that_was_written(pair, text, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    assert run(["quantize", pair[0], str(out), "--scheme", "int8", "--text", text, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes_after"] < found["bytes_before"]
    tensors = found["bytes_after"]
    assert tensors <= (out / "model.safetensors").stat().st_size < tensors + 20_000
    comparison = found["comparison"]
    assert comparison["perplexity"]["num_tokens"] > 50
    assert 0.9 < comparison["perplexity"]["after"] / comparison["perplexity"]["before"] < 1.1
    assert comparison["agreement"]["next_token"] > 0.5
    params = SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True)
    made, read = LLM(pair[0], quantization="int8"), LLM(out)
    assert made.generate(TEXT[:60], params)[0].outputs[0] == read.generate(TEXT[:60], params)[0].outputs[0]


def test_people_read_sizes_and_perplexity(pair, text, tmp_path, capsys):
    assert run(["quantize", pair[0], str(tmp_path / "out"), "--text", text]) == 0
    out = capsys.readouterr().out
    assert "matrices as int8" in out
    assert "perplexity of" in out
    assert "greedy answers" in out


def test_without_a_tokenizer_nothing_is_compared(tmp_path, capsys):
    tiny_llama(tmp_path / "model", hidden=64, intermediate=64)
    arguments = ["quantize", str(tmp_path / "model"), str(tmp_path / "out"), "--scheme", "int4", "--json"]
    assert run(arguments) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["comparison"] is None
    assert "no tokenizer" in captured.err


def test_nothing_is_written_over_unasked(pair, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.safetensors").write_text("mine")
    (out / "notes.txt").write_text("mine")
    arguments = ["quantize", pair[0], str(out), "--no-compare"]
    assert run(arguments) == 2
    assert "Add --force" in capsys.readouterr().err
    assert (out / "model.safetensors").read_text() == "mine"
    assert run([*arguments, "--force"]) == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert LLM(out).tokenizer is not None
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--scheme", "int3"], "unknown quantization 'int3'"),
        (["--scheme", "int4", "--group-size", "48"], "Set it to one of 32, 64, 128"),
        (["--text", "nowhere.txt"], "nowhere.txt cannot be read"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_cannot_be_is_refused_before_anything_is_written(pair, tmp_path, capsys, more, match):
    assert run(["quantize", pair[0], str(tmp_path / "out"), *more]) == 2
    assert match in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_is_not_quantised_onto_itself_or_twice(pair, tmp_path, capsys):
    before = sorted(path.name for path in Path(pair[0]).iterdir())
    assert run(["quantize", pair[0], pair[0], "--force", "--no-compare"]) == 2
    assert "is the model itself" in capsys.readouterr().err
    assert sorted(path.name for path in Path(pair[0]).iterdir()) == before
    assert run(["quantize", pair[0], str(tmp_path / "out"), "--no-compare"]) == 0
    assert run(["quantize", str(tmp_path / "out"), str(tmp_path / "again"), "--no-compare"]) == 2
    assert "quantised already" in capsys.readouterr().err
