"""Two sides measured against each other: what is found, in which order they ran, and that a run can be resumed."""

from __future__ import annotations

import json
import sys
from collections import Counter

import pytest

from paceline.benchmark.measure import measure
from paceline.benchmark.schedule import TrialPlan
from paceline.benchmark.statistics import expand, paired_ratio, percentiles
from paceline.benchmark.trial import CONTROL, SUBJECT, TrialError, TrialResult, Variant, command_side
from paceline.core.errors import ConfigError
from tests.benchmark.fakes import FakeClock, FakeProbes, NoisyTrials, experiment, raw_file


def measured(tmp_path, subject_seconds, control_seconds, *, seed, plan=None, **noise):
    trials = NoisyTrials(FakeClock(), seed=seed, **noise)
    one = experiment(trials.side("new", subject_seconds), trials.side("old", control_seconds))
    plan = plan or TrialPlan(num_pairs=16, seed=seed)
    record = measure([one], plan, probes=FakeProbes(), raw=raw_file(tmp_path / f"{seed}-{subject_seconds}.json"))
    return record["points"]["point"]["summary"]


@pytest.mark.parametrize("seed", range(12))
def test_a_slowdown_of_a_tenth_is_detected_through_noise_and_drift(tmp_path, seed):
    found = measured(tmp_path, 1.1, 1.0, seed=seed)["ratio"]
    assert found["verdict"] == "worse"
    assert found["low"] <= found["median"] <= found["high"] < 1
    assert found["median"] == pytest.approx(1 / 1.1, rel=0.05)


def test_no_change_is_not_detected(tmp_path):
    verdicts = Counter(measured(tmp_path, 1.0, 1.0, seed=seed)["ratio"]["verdict"] for seed in range(40))
    assert verdicts["no difference shown"] >= 36  # of intervals that miss in one case of twenty


def test_a_side_that_runs_after_the_other_is_what_pairs_protect_from(tmp_path):
    """The control of the design: on a machine that slows down, trials in two lumps show a difference, pairs do not."""
    trials = NoisyTrials(FakeClock(), seed=1, noise=0.01, drift=0.6)
    same = trials.side("same", 1.0)
    lumps = [[same.run(n).figures["seconds"] for n in range(16)] for _ in range(2)]
    assert paired_ratio(*lumps, lower_is_better=True, seed=0).verdict != "no difference shown"
    found = measured(tmp_path, 1.0, 1.0, seed=1, noise=0.01, drift=0.6)
    assert found["ratio"]["verdict"] == "no difference shown"


def test_known_figures(tmp_path):
    taken = {"fast": iter([2.0, 2.0, 2.0, 4.0, 2.0, 2.0]), "slow": iter([3.0, 3.0, 3.0, 3.0, 3.0, 3.0])}
    sides = [
        Variant(name, lambda _, times=times: TrialResult({"seconds": next(times)})) for name, times in taken.items()
    ]
    plan = TrialPlan(num_pairs=6, num_warmup=0)
    record = measure([experiment(*sides)], plan, probes=FakeProbes(50e9), raw=raw_file(tmp_path / "raw.json"))
    summary = record["points"]["point"]["summary"]
    assert summary[SUBJECT]["seconds"] == {
        "median": 2.0,
        "mad": 0.0,
        "iqr": 0.0,
        "low": 2.0,
        "high": 4.0,
        "count": 6,
    }
    assert summary["ratio"]["median"] == 1.5
    assert summary["probes"] == {"bytes_per_second": 50e9, "flops_per_second": 200e9}
    assert summary["warnings"] == []


def test_statistics_by_hand():
    found = expand([1.0, 2.0, 3.0, 4.0, 100.0])
    assert (found.median, found.mad, found.iqr) == (3.0, 1.0, 2.0)
    assert percentiles([1.0, 2.0, 3.0], (50,)) == {"p50": 2.0}
    assert percentiles([], (50,)) == {"p50": None}
    higher = paired_ratio([4.0] * 6, [2.0] * 6, lower_is_better=False, seed=0)
    assert (higher.median, higher.low, higher.high, higher.verdict) == (2.0, 2.0, 2.0, "better")
    few = paired_ratio([1.0, 2.0], [2.0, 6.0], lower_is_better=True, seed=0)
    assert (few.low, few.high, few.enough, few.verdict) == (2.0, 3.0, False, "no difference shown")
    for bad in (([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0]), ([float("nan")], [1.0])):
        with pytest.raises(ValueError, match=r"pairs|above 0"):
            paired_ratio(*bad, lower_is_better=True, seed=0)


def test_sides_alternate_and_neither_is_first_more_often():
    plan = TrialPlan(num_pairs=40, pairs_per_block=3, seed=5)
    pairs = [pair for block in range(plan.num_blocks) for pair in plan.pairs(block)]
    assert [number for number, _ in pairs] == list(range(40))
    assert Counter(order[0] for _, order in pairs) == {SUBJECT: 20, CONTROL: 20}
    firsts = [order[0] for _, order in pairs]
    assert len({tuple(firsts[n : n + 2]) for n in range(0, 40, 2)}) == 2
    other = TrialPlan(num_pairs=40, pairs_per_block=5, seed=5)
    assert [pair for block in range(other.num_blocks) for pair in other.pairs(block)] == pairs


def test_probes_bracket_every_block_and_drift_is_reported(tmp_path):
    probes = FakeProbes(50e9, 50e9, 48e9, 30e9)
    trials = NoisyTrials(FakeClock(), seed=0)
    one = experiment(trials.side("a", 1.0), trials.side("b", 1.0))
    plan = TrialPlan(num_pairs=6, pairs_per_block=3)
    record = measure([one], plan, probes=probes, raw=raw_file(tmp_path / "raw.json"))["points"]["point"]
    assert probes.asked == [1000] * 4
    assert [len(block["probes"]) for block in record["blocks"]] == [2, 2]
    assert record["summary"]["probes"]["bytes_per_second"] == pytest.approx((50e9 + 39e9) / 2)
    (warning,) = record["summary"]["warnings"]
    assert "bandwidth drifted by 40%" in warning


class StoppedError(Exception):
    pass


def skeleton(value):
    """The same with every number replaced: what must not depend on timing."""
    if isinstance(value, dict):
        return {key: skeleton(item) for key, item in value.items() if key not in ("ratio", "warnings")}
    if isinstance(value, list):
        return [skeleton(item) for item in value]
    return "number" if isinstance(value, float) else value


def stopping_at(side, calls, limit):
    def run(pair):
        calls.append(pair)
        if len(calls) == limit:
            raise StoppedError
        return side.run(pair)

    return Variant(side.label, run)


def test_an_interrupted_run_resumes_to_the_same_structure(tmp_path):
    plan = TrialPlan(num_pairs=7, pairs_per_block=2, seed=3)

    def points(calls, limit=None):
        trials = NoisyTrials(FakeClock(), seed=0)
        side = stopping_at(trials.side("a", 1.0), calls, limit)
        return [experiment(side, trials.side("b", 1.0), name=name) for name in ("first", "second")]

    whole = measure(points([]), plan, probes=FakeProbes(), raw=raw_file(tmp_path / "whole.json"))
    path = tmp_path / "stopped.json"
    with pytest.raises(StoppedError):
        measure(points([], limit=13), plan, probes=FakeProbes(), raw=raw_file(path))
    kept = json.loads(path.read_text())
    assert not kept["finished"]
    assert [len(point["blocks"]) for point in kept["points"].values()] == [4, 1]
    calls: list[int] = []
    resumed = measure(points(calls), plan, probes=FakeProbes(), raw=raw_file(path))
    assert calls == [-1, 2, 3, 4, 5, 6]  # warm again, then the pairs that were lacking
    assert skeleton(resumed) == skeleton(whole)
    assert resumed["points"]["second"]["blocks"][0] == kept["points"]["second"]["blocks"][0]
    assert json.loads(path.read_text()) == resumed


@pytest.mark.parametrize(
    "change",
    [{"parameters": {"batch": 2}}, {"plan": {"seed": 1}}, {"environment": {"hardware": {"cpu": "b"}}}, {"kind": "x"}],
)
def test_a_run_with_other_parameters_does_not_resume(tmp_path, change):
    path = tmp_path / "raw.json"
    same = {"parameters": {"batch": 1}, "plan": {"seed": 0}, "environment": {"hardware": {"cpu": "a"}}}
    raw_file(path, **same).save()
    assert raw_file(path, **same, command=["other"]).data["command"] == []
    with pytest.raises(ConfigError, match=next(iter(change)) + r"[\s\S]*another file"):
        raw_file(path, **(same | change))


def test_a_file_that_is_no_record_is_not_overwritten(tmp_path):
    path = tmp_path / "raw.json"
    for text in ("not json", "[]", '{"other": 1}'):
        path.write_text(text)
        with pytest.raises(ConfigError):
            raw_file(path)
        assert path.read_text() == text


def test_a_command_is_a_side():
    side = command_side("python", [sys.executable, "-c", 'print("noise\\n{\\"tokens\\": 5, \\"name\\": \\"x\\"}")'])
    figures = side.run(0).figures
    assert figures["tokens"] == 5.0
    assert figures["seconds"] > 0
    assert set(figures) == {"tokens", "seconds"}
    for command in ([sys.executable, "-c", "raise SystemExit('broken')"], ["/nonexistent/command"]):
        with pytest.raises(TrialError, match="failing"):
            command_side("failing", command).run(0)


def test_a_trial_without_the_figure_is_an_error(tmp_path):
    nothing = Variant("empty", lambda _: TrialResult({}))
    with pytest.raises(TrialError, match="empty gave no seconds"):
        measure(
            [experiment(nothing, nothing)], TrialPlan(num_warmup=0), probes=FakeProbes(), raw=raw_file(tmp_path / "r")
        )


@pytest.mark.parametrize("bad", [{"num_pairs": 0}, {"pairs_per_block": 0}, {"num_warmup": -1}, {"max_drift": 1.0}])
def test_plans_that_make_no_sense_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        TrialPlan(**bad)
