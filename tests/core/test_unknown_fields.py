"""A keyword that there is not is refused by name in two lines, the second of which says what there is."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest

from paceline import LLM, SamplingParams
from paceline.core.config import EngineConfig, SpeculativeConfig
from paceline.core.errors import ConfigError, InvalidRequestError, PacelineError


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("foo", "Choose from: allowed_token_ids, bad_words, "),
        ("guided_decoding", "Choose from: "),
        ("temprature", "Did you mean temperature?"),
        ("stop_tokens", "Did you mean stop_token_ids?"),
        ("max_new_tokens", "Use max_tokens."),
        ("repeat_penalty", "Use repetition_penalty."),
    ],
)
def test_sampling_parameters_that_there_are_not(name: str, fix: str) -> None:
    for make in (SamplingParams, lambda **more: replace(SamplingParams(), **more)):
        with pytest.raises(PacelineError) as caught:
            make(**{name: 1})
        assert isinstance(caught.value, InvalidRequestError)
        assert isinstance(caught.value, TypeError)
        cause, second = str(caught.value).split("\n")
        assert cause == f"SamplingParams has no field {name}, got 1"
        assert second.startswith(fix)
        assert caught.value.param == name


def test_fields_are_as_they_were() -> None:
    assert next(iter(inspect.signature(SamplingParams).parameters)) == "n"
    assert replace(SamplingParams(n=2), n=3) == SamplingParams(n=3)
    with pytest.raises(TypeError, match="positional"):
        SamplingParams(3)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("gpu_memory_utilization", 0.9, "Use num_blocks"),
        ("num_gpu_blocks_override", 100, "Use num_blocks"),
        ("speculative_model", "x", "Use speculative_config."),
        ("n_ctx", 512, "Use max_model_len."),
        ("load_in_8bit", True, 'Use quantization="int8".'),
        ("max_model_length", 512, "Did you mean max_model_len?"),
        ("foo", 1, "Choose from: "),
    ],
)
def test_engine_options_that_there_are_not(name: str, value: object, fix: str) -> None:
    for make in (EngineConfig.of, LLM):
        with pytest.raises(ConfigError) as caught:
            make(**{name: value})
        cause, second = str(caught.value).split("\n")
        assert cause == f"unknown engine option {name!r}"
        assert second.startswith(fix)


def test_a_draft_model_is_a_method() -> None:
    named = SpeculativeConfig.of({"method": "draft_model", "model": "x", "num_speculative_tokens": 2})
    assert SpeculativeConfig.of({"model": "x", "num_speculative_tokens": 2}) == named
    assert SpeculativeConfig.of({"method": None, "model": "x", "num_speculative_tokens": 2}) == named
    for values in ({}, {"num_speculative_tokens": 2}, "x"):
        with pytest.raises(ConfigError, match='needs a "method" or a "model"\nFor example'):
            SpeculativeConfig.of(values)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="speculative_config option 'draft_model'\nUse model"):
        SpeculativeConfig.of({"method": "draft_model", "draft_model": "x"})
