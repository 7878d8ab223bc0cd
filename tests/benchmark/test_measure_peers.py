"""The comparison by shapes: its arithmetic and goals on planted numbers, and one run of it on a shape made tiny."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paceline.benchmark.peers.process import Answers
from paceline.core.errors import ConfigError
from scripts.measure_peers import __main__ as command
from scripts.measure_peers import checkpoints, goals, parts, run, sides, table
from tests.benchmark.fakes import FakeProbes

DECODE = parts.DECODE


def point(speeds, *, title="M batch 1", bandwidth=40e9, rows=1, missing=None):
    """A measured part: name -> (kind, tokens/s by round), names of ours beginning so."""
    rounds = range(max(len(values) for _, values in speeds.values()))
    reading = {kind: {"bytes_per_second": bandwidth} for kind in sides.BYTES}
    about = {
        name: {
            "kind": kind,
            "ours": name.startswith("ours"),
            "speculates": "lookup" in name,
            "same_choices": 1.0,
            "agreement": 0.5,
        }
        for name, (kind, _) in speeds.items()
    }
    blocks = [
        {
            "probes": [reading, reading],
            "sides": {name: {DECODE: values[n]} for name, (_, values) in speeds.items() if n < len(values)},
        }
        for n in rounds
    ]
    parameters = {"shape": title[0], "prompt_lengths": [16] * rows, "metric": DECODE}
    return table.Column.of(
        title, {"parameters": parameters, "about": about, "blocks": blocks, "missing": missing or {}}
    )


SPEEDS = {
    "ours a": ("int8", [60.0] * 6),
    "ours b": ("bf16", [30.0] * 6),
    "llama.cpp-q8_0": ("int8", [30.0] * 6),
    "llama.cpp-bf16": ("bf16", [28.0] * 6),
    "transformers": ("bf16", [10.0] * 6),
    "some-lookup": ("int8", [500.0] * 6),
}


def test_columns_rank_pair_and_relate_to_the_bandwidth():
    column = point(SPEEDS)
    assert list(column.speeds)[:2] == ["some-lookup", "ours a"]
    assert column.names(ours=False)[0] == "llama.cpp-q8_0"
    assert column.names(ours=True, kinds=("bf16",)) == ["ours b"]
    assert column.ratio("ours a", "llama.cpp-q8_0").median == 2
    read = checkpoints.SHAPES["M"].num_read
    assert column.of_bandwidth("ours a").median == pytest.approx(60 * read / 40e9)
    assert column.of_bandwidth("ours b").median == pytest.approx(30 * read * 2 / 40e9)
    assert column.of_bandwidth("some-lookup") is None
    assert point(SPEEDS, rows=8).of_bandwidth("ours a").median == pytest.approx(60 / 8 * read / 40e9)


def test_rounds_that_lack_a_side_do_not_count():
    column = point(SPEEDS | {"vllm": ("bf16", [15.0, 20.0])})
    found = column.ratio("ours a", "vllm")
    assert found.num_pairs == 2
    assert not found.enough
    assert found.median == 3.5


def test_goals_hold_or_are_missed_by_what_was_planted():
    found = {v.goal.title: v for v in goals.verdicts([point(SPEEDS)])}
    q8 = found["M batch 1, int8, over llama.cpp-q8_0"]
    assert q8.holds
    assert q8.found == 2
    assert q8.line().startswith("holds")
    bf16 = found["M batch 1, bf16, over llama.cpp-bf16"]
    assert bf16.holds is False
    assert bf16.line().endswith("1.12 times the speed is needed")
    assert found["M batch 1, int8, over transformers"].holds
    assert found["M batch 1, bf16, over transformers"].holds is False
    assert found["M batch 1, int8, over the probed bandwidth"].holds is False
    assert goals.verdicts([point(SPEEDS, bandwidth=25e9)])[0].holds
    int4 = found["M batch 1, int4, over llama.cpp-q4_0"]
    assert int4.holds is None
    assert "no such configuration" in int4.line()
    assert "no round" in found["S batch 1, int8, over llama.cpp-q8_0"].line()


def test_the_best_peer_is_the_fastest_that_does_not_speculate():
    column = point(SPEEDS, title="M batch 8", rows=8)
    best = next(v for v in goals.verdicts([column]) if v.goal.part == "M batch 8")
    assert best.who == "ours a over llama.cpp-q8_0"
    assert best.found == 2
    alone = {name: one for name, one in SPEEDS.items() if name.startswith("ours")}
    missing = {"llama.cpp-q8_0": "it ended"}
    verdict = goals.verdicts([point(alone, missing=missing)])[2]
    assert verdict.reason == "it ended"


def test_configurations_are_options_of_any_name():
    assert sides.parse_ours("x:dtype=bfloat16,max_num_seqs=8,model_impl=native") == (
        "x",
        {"dtype": "bfloat16", "max_num_seqs": 8, "model_impl": "native"},
    )
    assert sides.ours("x:model_impl=native,quantization=int4").least_agreement == sides.INT4_AGREEMENT
    assert sides.kind_of({"dtype": "bfloat16", "quantization": "int8"}) == "int8"
    assert sides.kind_of({"type": "q4_0", "flash_attn": True}) == "int4"
    assert sides.kind_of({"bits": 8}) == "int8"
    for wrong in ("x", ":a=1", "x:a"):
        with pytest.raises(ConfigError, match="no configuration"):
            sides.parse_ours(wrong)


def test_shapes_are_as_large_as_they_are_said_to_be():
    sizes = {name: shape.num_parameters for name, shape in checkpoints.SHAPES.items()}
    assert sizes == {"S": 23_599_488, "M": 487_113_728}


def test_orders_are_drawn_and_come_back_reversed():
    names = list("abcdef")
    orders = [run._order(names, number, 0) for number in range(4)]
    assert orders[1] == orders[0][::-1]
    assert orders[2] != orders[0]
    assert all(sorted(order) == names for order in orders)


def test_speeds_of_a_trial():
    asked = parts.part("S", "batch 8", quick=True, seed=0)
    answers = Answers([[1] * 5] * 8, 4.0, [(0.5, 0), (1.0, 1), (2.0, 3), (3.0, 5)])
    found = run.figures(answers, asked)
    assert found[DECODE] == 8 * 4 / 2.0
    assert found["tokens_per_second"] == 10
    assert parts.PREFILL not in found
    read = parts.part("S", "prefill", quick=True, seed=0)
    assert run.figures(Answers([[1]], 2.0, [(2.0, 1)]), read)[parts.PREFILL] == 256


@pytest.fixture
def tiny(monkeypatch):
    shape = checkpoints.Shape(hidden=32, layers=1, heads=2, kv_heads=1, intermediate=48, vocab_size=320)
    monkeypatch.setitem(checkpoints.SHAPES, "S", shape)
    monkeypatch.setitem(parts.QUICK_OUTPUT, "S", 4)
    monkeypatch.setattr(run, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(run, "MachineProbes", lambda *_, **__: FakeProbes())


def test_a_run_goes_on_from_its_file_and_prints_the_table(tiny, tmp_path, capsys):
    raw = tmp_path / "raw.json"
    given = ["run", "--quick", "--raw", str(raw), "--work", str(tmp_path), "--environments", str(tmp_path)]
    given += ["--shapes", "S", "--parts", "batch 1", "--threads", "1", "--peers", "", "--note", "made in a test"]
    given += ["--ours", "one:dtype=float32,max_num_seqs=8", "--ours", "broken:dtype=float31"]
    assert command.main([*given, "--rounds", "1"]) == 0
    first = json.loads(raw.read_text())
    assert command.main([*given, "--rounds", "2"]) == 0
    blocks = json.loads(raw.read_text())["points"]["S batch 1"]["blocks"]
    assert len(blocks) == 2
    assert blocks[0] == first["points"]["S batch 1"]["blocks"][0]
    assert command.main(["table", str(raw)]) == 0
    shown = capsys.readouterr().out
    assert "| ours one | fp32 |" in shown
    assert "ours broken is missing: " in shown
    assert "float31" in shown
    assert "made in a test" in shown
    assert "not measured  S batch 8" in shown
    assert command.main([*given, "--ours", "two:dtype=float32"]) == 2
    assert "Use another file" in capsys.readouterr().err
    assert command.main([*given, "--parts", "batch 3"]) == 2
    assert "Choose from: batch 1, batch 8, prefill." in capsys.readouterr().err
    assert Path(tmp_path / "models" / "S" / "config.json").exists()
