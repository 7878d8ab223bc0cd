"""What an option may not be is said on one line, and what to set instead on the next."""

from __future__ import annotations

import json
import math

import pytest

from paceline.core.config import EngineConfig, SpeculativeConfig
from paceline.core.errors import ConfigError


def refusal(**options: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        SpeculativeConfig.of({"method": "ngram", **options})
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("option", "value", "fix"),
    [
        ("num_speculative_tokens", 0, "Set num_speculative_tokens to 1."),
        ("num_speculative_tokens", 65, "Set num_speculative_tokens to 64."),
        ("num_speculative_tokens", 10**400, "Set num_speculative_tokens to 64."),
        ("num_speculative_tokens", math.inf, "Set num_speculative_tokens to 64."),
        ("num_speculative_tokens", 2.5, "Set num_speculative_tokens to 2."),
        ("num_speculative_tokens", -0.5, "Set num_speculative_tokens to 1."),
        ("suffix_decoding_min_token_prob", 2, "Set suffix_decoding_min_token_prob to 1.0."),
        ("draft_max_nodes", -3, "Set draft_max_nodes to 1."),
    ],
)
def test_a_number_out_of_range_is_answered_with_the_nearest(option: str, value: object, fix: str) -> None:
    cause, instead = refusal(**{option: value})
    assert cause.startswith(f"{option} must be ")
    assert instead == fix
    SpeculativeConfig.of({"method": "ngram", option: json.loads(fix.rsplit(maxsplit=1)[-1][:-1])})


@pytest.mark.parametrize("value", [math.nan, "4", True, None, [], {}], ids=str)
def test_what_is_no_number_may_be_left_out(value: object) -> None:
    cause, fix = refusal(num_speculative_tokens=value)
    assert cause.startswith("num_speculative_tokens must be an integer in [1, 64], got ")
    assert fix == "Leave num_speculative_tokens out, or set it to an integer in [1, 64]."


def test_other_kinds_of_options_are_answered_too() -> None:
    assert refusal(method=3)[1] == "Set method to text."
    assert refusal(model=5)[1] == "Leave model out, or set it to text."
    bound = "suffix_decoding_max_spec_factor"
    assert refusal(**{bound: 0})[1] == f"Leave {bound} out, or set it to a number of at most 64 above 0."
    assert refusal(prompt_lookup_min=5, prompt_lookup_max=2)[1] == "Set prompt_lookup_max to 5."
    with pytest.raises(ConfigError, match=r"\nLeave enable_prefix_caching out, or set it to true or false\."):
        EngineConfig.of(enable_prefix_caching="banana")
