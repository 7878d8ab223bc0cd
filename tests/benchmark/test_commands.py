"""``paceline bench``: what it prints, writes and draws, and what it refuses before it measures."""

from __future__ import annotations

import csv
import json
import re

import matplotlib.image
import pytest

from paceline.benchmark.plots import caption, plots
from paceline.benchmark.report import COLUMNS
from paceline.cli.bench_sweep import swept
from paceline.cli.engine_options import EngineChoice
from paceline.cli.main import run
from paceline.core.errors import ConfigError

QUICK = ["--input-lens", "12", "--output-lens", "8", "--pairs", "2", "--warmup", "0", "--threads", "1"]


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("FORCE_COLOR", "PACELINE_SEED", "PACELINE_DTYPE"):
        monkeypatch.delenv(name, raising=False)


def model(pair):
    return [pair[0], "--draft", pair[1], "--dtype", "float64", "--device", "cpu", "--max-num-seqs", "4"]


def test_latency_is_measured_written_and_drawn(pair, capsys, tmp_path):
    files = ["--raw", "raw.json", "--json", "out.json", "--csv", "out.csv", "--plots", "plots"]
    price = ["--hardware", "aws-m7g-large"]
    assert run(["bench", "latency", *model(pair), *QUICK, "--batch-sizes", "1,2", *files, *price]) == 0
    out = capsys.readouterr().out
    assert "speculation off" in out
    assert "raw.json" in out
    found, raw = (json.loads((tmp_path / name).read_text()) for name in ("out.json", "raw.json"))
    assert raw["finished"]
    assert raw["command"]
    assert set(found["points"]) == {f"batch {size}, input 12, output 8" for size in (1, 2)}
    for size, (name, point) in enumerate(found["points"].items(), 1):
        assert point["metric"] == "inter_token_latency"
        subject, control = (point["sides"][side] for side in ("subject", "control"))
        assert subject["figures"]["num_tokens"]["median"] == control["figures"]["num_tokens"]["median"] == 8 * size
        assert control["acceptance"] is None
        assert control["figures"]["tokens_per_step"]["median"] == 1
        assert 0 < subject["acceptance"]["rate"] <= 1
        assert subject["acceptance"]["tokens_per_step"]
        assert subject["dollars_per_million_tokens"] > 0
        assert subject["memory_bytes"]["draft_weights"] > 0
        assert set(subject["roofline"]) == {"prefill", "decode"}
        answers = raw["points"][name]["blocks"][0]["pairs"][0]["subject"]["detail"]["answers"]
        assert [(one["num_prompt_tokens"], one["num_tokens"]) for one in answers] == [(12, 8)] * size
    assert found["price"]["source"].startswith("https://")
    with (tmp_path / "out.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 4
    assert tuple(table[0]) == COLUMNS
    drawn = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert drawn == sorted(f"latency-{name}.png" for name in plots if name != "option")
    for path in (tmp_path / "plots").iterdir():
        assert matplotlib.image.imread(path).shape[0] > 300
        assert b"raw.json" in path.read_bytes()  # the caption, kept as the picture's description too
    text = caption(raw, "raw.json")
    for part in (raw["environment"]["hardware"]["cpu"], "torch", "paceline", "seed 0", "n = 2", "raw.json"):
        assert part in text


def test_a_finished_run_is_shown_again_and_a_different_one_refused(pair, capsys, tmp_path):
    command = ["bench", "latency", *model(pair), *QUICK, "--raw", "raw.json"]
    assert run(command) == 0
    first = json.loads((tmp_path / "raw.json").read_text())
    assert run(command) == 0
    assert json.loads((tmp_path / "raw.json").read_text())["points"] == first["points"]
    assert "already measured" in capsys.readouterr().err
    assert run([*command, "--seed", "4"]) == 2
    assert "Use another file" in capsys.readouterr().err


def test_an_option_is_swept(pair, tmp_path):
    more = ["--sweep", "num_speculative_tokens=0,2", "--json", "out.json", "--plots", "plots"]
    assert run(["bench", "latency", *model(pair), *QUICK, *more]) == 0
    points = json.loads((tmp_path / "out.json").read_text())["points"]
    assert list(points) == [f"num_speculative_tokens={n}, batch 1, input 12, output 8" for n in (0, 2)]
    none, two = points.values()
    assert none["sides"]["subject"]["acceptance"] is None
    assert len(two["sides"]["subject"]["acceptance"]["rate_by_position"]) == 2
    assert two["parameters"]["option"] == {"num_speculative_tokens": 2}
    assert (tmp_path / "plots" / "latency-option.png").is_file()


def test_a_drafters_option_needs_a_drafter():
    plain = EngineChoice("some/model", None, {"seed": 3})
    with pytest.raises(ConfigError, match=r"needs a drafter[\s\S]*--draft"):
        swept(plain, "num_speculative_tokens=1")
    assert [one.choice.options for one in swept(plain, "max-num-seqs=4,8")] == [
        {"seed": 3, "max_num_seqs": 4},
        {"seed": 3, "max_num_seqs": 8},
    ]
    none, two = swept(EngineChoice(None, "auto", {}), "num_speculative_tokens=0,2")
    assert none.choice.speculative is None
    assert two.choice.speculative["num_speculative_tokens"] == 2


@pytest.mark.parametrize("control", ["prefix-cache", "batching"])
def test_throughput_with_every_control(pair, tmp_path, control):
    more = ["--control", control, "--num-prompts", "3", "--prefix-len", "16", "--turns", "2", "--json", "out.json"]
    assert run(["bench", "throughput", *model(pair), *QUICK, *more]) == 0
    (point,) = json.loads((tmp_path / "out.json").read_text())["points"].values()
    assert point["metric"] == "tokens_per_second"
    for side in point["sides"].values():
        assert side["figures"]["num_tokens"]["median"] == 3 * 2 * 8
        assert side["acceptance"] is not None  # only what the control names is taken away


def test_prompts_of_a_file_are_told_apart_by_category(pair, capsys, tmp_path):
    lines = [{"question_id": n, "category": c, "turns": ["Hello"]} for n, c in enumerate(["qa", "rag"] * 2)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    quick = [part for part in QUICK if part not in ("--input-lens", "12")]
    more = ["--prompts", "prompts.jsonl", "--batch-sizes", "2", "--json", "out.json"]
    assert run(["bench", "latency", *model(pair), *quick, *more]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    (point,) = found["points"].values()
    assert set(point["categories"]) == {"qa", "rag"}
    assert found["parameters"]["asked"]["prompts"]["count"] == 4
    assert re.search(r"^  rag: ", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batch-sizes", "0"], ("--batch-sizes", "1,8")),
        (["--batch-sizes", "x"], ("--batch-sizes", "1,8")),
        (["--batch-sizes", "9", "--max-num-seqs", "8"], ("a batch of 9", "--max-num-seqs 9")),
        (["--output-lens", "300"], ("do not fit the context of 256", "--output-lens to at most 244")),
        (["--control", "nothing"], ("unknown control", "speculation")),
        (["--hardware", "abacus"], ("no price for 'abacus'", "rtx-4090")),
        (["--pairs", "0"], ("num_pairs", "")),
        (["--sweep", "num_blocks"], ("--sweep", "num_speculative_tokens=0,2,4")),
        (["--sweep", "speed=1,2"], ("unknown option 'speed'", "max_num_seqs")),
        (["--sweep", "max_num_seqs=4,-1"], ("max_num_seqs", "")),
        (["--threads", "0"], ("--threads", "")),
        (["--prompts", "missing.jsonl"], ("missing.jsonl cannot be read", "")),
        (["--prompts", "missing.jsonl", "--turns", "2"], ("--turns", "Leave one out")),
        (["--json", "missing/out.json"], ("no directory missing", "")),
        (["--prices", "missing.toml"], ("missing.toml", "")),
    ],
)
def test_what_cannot_work_is_refused(pair, capsys, tmp_path, options, said):
    assert run(["bench", "latency", *model(pair), *QUICK, *options]) == 2
    cause, fix = said
    error = capsys.readouterr().err
    assert cause in error.splitlines()[0]
    assert fix in error
    assert not list(tmp_path.glob("paceline-bench/*"))
