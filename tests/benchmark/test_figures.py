"""Figures by hand: latencies of tokens that come several at a time, acceptance, cost, roofline."""

from __future__ import annotations

import pytest

from paceline.benchmark.acceptance import acceptance
from paceline.benchmark.cost import BUNDLED, Price, cost_per_million_tokens, find_price, load_prices
from paceline.benchmark.roofline import roofline
from paceline.benchmark.tokens import TokenTimes, mean_inter_token_latency, token_figures
from paceline.core.errors import ConfigError


def test_four_tokens_of_one_step_share_its_wait():
    answer = TokenTimes(10.0, [10.5, *[10.54] * 4, *[10.6] * 2])
    assert answer.time_to_first_token == pytest.approx(0.5)
    assert answer.inter_token_latencies == pytest.approx([0.01] * 4 + [0.03] * 2)
    assert answer.step_latencies == pytest.approx([0.04, 0.06])
    assert answer.time_per_output_token == pytest.approx(0.1 / 6)
    assert answer.steps == [(10.5, 1), (10.54, 4), (10.6, 2)]


def test_further_tokens_of_the_first_step_do_not_make_the_rest_look_faster():
    answer = TokenTimes(0.0, [1.0, 1.0, 1.0, 1.3])
    assert answer.inter_token_latencies == pytest.approx([0.3])
    assert answer.time_per_output_token == pytest.approx(0.1)  # vLLM's definition does


def test_answers_without_a_second_step_have_no_latency():
    for times in ([], [1.0], [1.0, 1.0]):
        assert TokenTimes(0.0, times).inter_token_latencies == []
    assert TokenTimes(0.0, []).time_to_first_token is None
    assert mean_inter_token_latency([TokenTimes(0.0, [1.0])]) is None
    assert set(token_figures([TokenTimes(0.0, [])], seconds=1.0)) == {
        "seconds",
        "num_requests",
        "num_tokens",
        "tokens_per_second",
    }


def test_a_trials_figures():
    answers = [TokenTimes(0.0, [1.0, 1.2, 1.2, 1.4]), TokenTimes(0.0, [2.0, 2.1])]
    found = token_figures(answers, seconds=3.0)
    assert found["num_tokens"] == 6
    assert found["tokens_per_second"] == 2.0
    assert found["inter_token_latency"] == pytest.approx((0.1 + 0.1 + 0.2 + 0.1) / 4)
    assert found["time_to_first_token_p50"] == pytest.approx(1.5)
    assert found["tokens_per_step"] == pytest.approx(6 / 5)
    assert found["request_latency"] == pytest.approx((1.4 + 2.1) / 2)
    assert found["step_latency_p50"] == pytest.approx(0.2)
    assert found["step_latency_max"] == pytest.approx(0.2)


def test_the_worst_gap_is_one_pause_however_many_tokens_end_it():
    answers = [TokenTimes(0.0, [1.0, 1.1]), TokenTimes(0.0, [9.0, 9.1, 9.9, 9.9, 9.9]), TokenTimes(0.0, [30.0])]
    assert token_figures(answers, seconds=30.0)["step_latency_max"] == pytest.approx(0.8)
    assert "step_latency_max" not in token_figures(answers[2:], seconds=30.0)


def test_acceptance_between_two_reports():
    before = {"num_drafts": 2, "num_drafted": 6, "num_accepted": 3, "accepted_per_position": [2, 1, 0]}
    after = {"num_drafts": 6, "num_drafted": 18, "num_accepted": 9, "accepted_per_position": [5, 3, 1]}
    found = acceptance(before, after, [TokenTimes(0.0, [1.0, 2.0, 2.0, 3.0])])
    assert found["rate"] == 0.5
    assert found["length"] == 2.5
    assert found["rate_by_position"] == [0.75, 0.5, 0.25]
    assert found["tokens_per_step"] == {"1": 2, "2": 1}
    assert acceptance(before, before)["rate"] is None


@pytest.mark.parametrize(
    ("dollars", "speed", "devices", "expected"),
    [(3.6, 1000.0, 1, 1.0), (3.6, 100.0, 1, 10.0), (1.8, 1000.0, 2, 1.0), (0.36, 50.0, 1, 2.0)],
)
def test_cost_by_hand(dollars, speed, devices, expected):
    price = Price("x", dollars, "somewhere", "today")
    assert cost_per_million_tokens(price, speed, num_devices=devices) == pytest.approx(expected)
    with pytest.raises(ValueError, match="above 0"):
        cost_per_million_tokens(price, 0.0)


def test_every_bundled_price_says_where_it_is_from():
    prices = load_prices()
    assert len(prices) > 4
    for price in prices.values():
        assert price.source.startswith("https://")
        assert price.as_of.removeprefix("read ").startswith("202")
        assert price.dollars_per_hour > 0


def test_ones_own_prices_replace_and_add(tmp_path):
    own = tmp_path / "own.toml"
    own.write_text(
        '[h100]\ndollars_per_hour = 1\nsource = "contract"\nas_of = "now"\nmatches = ["H100"]\n'
        '[mine]\ndollars_per_hour = 0.1\nsource = "bill"\nas_of = "now"\n'
    )
    prices = load_prices(own)
    assert (prices["h100"].dollars_per_hour, prices["mine"].source) == (1.0, "bill")
    assert "rtx-4090" in prices
    gpu = {"cpu": "some", "gpus": ["NVIDIA GeForce RTX 4090"]}
    assert find_price(prices, name=None, hardware=gpu) == prices["rtx-4090"]
    assert find_price(prices, name="mine", hardware=gpu) == prices["mine"]
    assert find_price(prices, name=None, hardware={"cpu": "AMD EPYC", "gpus": []}) is None
    with pytest.raises(ConfigError, match="no price for 'other'"):
        find_price(prices, name="other", hardware=gpu)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("[x", "TOML"),
        ("x = 1", "table"),
        ('[x]\nsource = "a"\nas_of = "b"', "dollars_per_hour"),
        ('[x]\ndollars_per_hour = -1\nsource = "a"\nas_of = "b"', "dollars_per_hour"),
        ('[x]\ndollars_per_hour = 1\nas_of = "b"', "source"),
        ('[x]\ndollars_per_hour = 1\nsource = "a"', "as_of"),
        ('[x]\ndollars_per_hour = 1\nsource = "a"\nas_of = "b"\nprice = 2', "unknown field 'price'"),
        ('[x]\ndollars_per_hour = 1\nsource = "a"\nas_of = "b"\nmatches = "c"', "matches"),
    ],
)
def test_bad_prices_are_named(tmp_path, text, cause):
    own = tmp_path / "own.toml"
    own.write_text(text)
    with pytest.raises(ConfigError, match=cause) as refused:
        load_prices(own)
    assert str(own) in str(refused.value)
    assert BUNDLED.name in str(refused.value)


def test_roofline_by_hand():
    found = roofline(num_bytes=4e9, num_flops=1e9, seconds=0.1, bytes_per_second=50e9, flops_per_second=200e9)
    assert (found.bandwidth, found.compute, found.bound) == (0.8, 0.05, "bandwidth")
    busy = roofline(num_bytes=1, num_flops=18e9, seconds=0.1, bytes_per_second=50e9, flops_per_second=200e9)
    assert busy.bound == "compute"
    assert busy.compute == pytest.approx(0.9)
