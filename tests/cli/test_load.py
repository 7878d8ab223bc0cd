"""The load generator: what it computes from known times, when requests are due, and a short run on a real service."""

from __future__ import annotations

import json

import pytest

from paceline.cli.loopback import running_service
from scripts import load
from scripts.load_client import Load, Sample
from tests.cli.conftest import model_arguments


def sample(due: float, *times: float, error: str | None = None) -> Sample:
    return Sample(due, list(times), times[-1] if times else due + 1, error)


def test_latencies_are_per_token_and_count_from_when_a_request_was_due():
    # Three steps: one token, four tokens after 0.4 s, two tokens after 0.1 s.
    one = sample(10.0, 10.5, *[10.9] * 4, *[11.0] * 2)
    found = load.figures([one, sample(0.0, error="429"), sample(0.0, 5.0, error="timeout"), sample(0.0)], 2.0)
    assert found["time_to_first_token_p50"] == pytest.approx(0.5)
    assert found["inter_token_latency_p50"] == pytest.approx(0.1)
    assert found["inter_token_latency_p99"] == pytest.approx(0.1)
    assert found["step_latency_p50"] == pytest.approx(0.25)
    assert found["e2e_latency_p99"] == pytest.approx(1.0)
    assert found["tokens_per_step"] == pytest.approx(7 / 3)
    assert found["tokens_per_second"] == pytest.approx(3.5)
    assert found["requests_per_second"] == pytest.approx(0.5)
    assert found["errors"] == {"429": 1, "timeout": 1, "no tokens": 1}


def test_percentiles_over_requests():
    found = load.figures([sample(0.0, (number + 1) / 100) for number in range(101)], 1.0)
    assert found["time_to_first_token_p50"] == pytest.approx(0.51)
    assert found["time_to_first_token_p99"] == pytest.approx(1.0)
    assert found["mean_in_flight"] == pytest.approx(sum((number + 1) / 100 for number in range(101)))
    assert load.figures([sample(0.0)], 1.0)["num_errors"] == 1


def test_arrivals_are_poisson_and_the_same_for_a_seed():
    def arrivals(seed: int) -> list[float]:
        return Load(prompts=["x"], num_requests=4000, rate=20.0, seed=seed).arrivals()

    times = arrivals(1)
    assert times == arrivals(1) != arrivals(2)
    assert times == sorted(times)
    gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(0.05, rel=0.1)
    assert spread == pytest.approx(0.05, rel=0.1)  # of an exponential law, the mean itself


def test_short_runs_on_a_real_service(pair, capsys, monkeypatch):
    with running_service([*model_arguments(pair), "--max-requests", "4"]) as client:
        monkeypatch.setenv("PACELINE_API_KEY", client.headers["Authorization"].removeprefix("Bearer "))
        common = ["--url", str(client.base_url), "--max-tokens", "6", "--requests", "5"]
        assert load.main([*common, "--clients", "2", "--json"]) == 0
        closed = json.loads(capsys.readouterr().out)
        assert load.main([*common, "--rate", "200", "--warmup", "0"]) in (0, 1)
        table = capsys.readouterr().out
        monkeypatch.setenv("PACELINE_API_KEY", "wrong")
        assert load.main([*common, "--json", "--warmup", "0"]) == 1
        assert json.loads(capsys.readouterr().out)["figures"]["errors"] == {"401": 5}
    assert closed["figures"]["num_tokens"] == 30
    assert closed["figures"]["num_errors"] == 0
    assert closed["figures"]["e2e_latency_p99"] >= closed["figures"]["time_to_first_token_p50"] > 0
    assert closed["environment"]["software"]["torch"]
    assert "Poisson, 200 requests/s" in table
    assert "inter_token_latency" in table


@pytest.mark.parametrize("wrong", [["--clients", "0"], ["--rate", "0"], ["--rate", "-1"], ["--requests", "0"]])
def test_loads_that_make_no_sense_are_refused(capsys, wrong):
    assert load.main([*wrong, "--url", "http://127.0.0.1:9"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2
