"""Perplexity and agreement: equal to what transformers computes, and sensitive to what changes the answers."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from paceline.benchmark.accuracy import Passages, agreement, loss_difference, perplexity, write_greedily
from paceline.cli.main import run
from paceline.core.errors import ConfigError
from tests.support.calls import random_prompt

TEXT = random_prompt(0, 120)


@pytest.fixture(scope="module")
def passages():
    return Passages.of(TEXT, window=64, stride=64)


@pytest.fixture(scope="module")
def perturbed(pair, load):
    """The draft as if it were the target: nearly the same weights."""
    from paceline import LLM  # noqa: PLC0415

    return LLM(pair[1], dtype="float64", device="cpu", max_num_seqs=4)


def by_transformers(path, windows):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    losses = []
    for window in windows:
        with torch.inference_mode():
            logprobs = model(torch.tensor([window])).logits[0].log_softmax(-1)
        losses += [-float(logprobs[place, token]) for place, token in enumerate(window[1:])]
    return math.exp(sum(losses) / len(losses))


def test_perplexity_is_what_transformers_computes(pair, llm, passages):
    found = perplexity(llm, passages)
    assert len(found.losses) == 120 - len(passages.windows)
    assert found.value == pytest.approx(by_transformers(pair[0], passages.windows), rel=1e-6)


def test_overlapping_windows_score_every_token_once():
    for length in (2, 3, 63, 64, 65, 100, 120):
        for window, stride in ((64, 64), (64, 16), (2, 1), (10, 9)):
            cut = Passages.of(TEXT[:length], window=window, stride=stride)
            places = []
            for number, (tokens, first) in enumerate(zip(cut.windows, cut.first_scored, strict=True)):
                assert 2 <= len(tokens) <= window
                assert len(tokens) > first
                places += range(number * stride + first, number * stride + len(tokens))
            if stride < window:
                assert places == list(range(1, length))
            else:  # the first token of each window has nothing before it
                assert places == [place for place in range(length) if place % stride]


@pytest.mark.parametrize(("length", "window", "stride"), [(1, 8, 8), (9, 1, 1), (9, 8, 9), (9, 8, 0)])
def test_texts_and_windows_too_short_are_refused(length, window, stride):
    with pytest.raises(ConfigError):
        Passages.of(TEXT[:length], window=window, stride=stride)


@pytest.mark.parametrize("options", [{"block_size": 4, "max_num_batched_tokens": 32}, {"cache": "static"}])
def test_a_configuration_that_changes_nothing_agrees_entirely(llm, load, passages, options):
    other = load({**options, "speculative_config": None})
    prompts = [TEXT[:20], TEXT[40:50]]
    found = agreement(other, write_greedily(llm, prompts, 12))
    assert (found.identical, found.next_token, found.same_before_difference) == (1.0, 1.0, 12.0)
    assert (found.num_answers, found.num_tokens) == (2, 24)
    difference, error = loss_difference(perplexity(other, passages), perplexity(llm, passages))
    assert abs(difference) < 1e-9
    assert error < 1e-9


def test_other_weights_are_noticed(llm, perturbed, passages):
    """The planted fault: a model whose weights moved by a twentieth must not pass for the same."""
    found = agreement(perturbed, write_greedily(llm, [TEXT[:20], TEXT[40:60], TEXT[90:95]], 12))
    assert found.identical < 1
    assert 0.2 < found.next_token < 1
    difference, error = loss_difference(perplexity(perturbed, passages), perplexity(llm, passages))
    assert abs(difference) > error > 0


def test_the_command(pair, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 8)
    files = ["--text", str(text), "--json", str(tmp_path / "out.json")]
    command = ["bench", "accuracy", pair[0], "--device", "cpu", "--max-num-seqs", "4", "--window", "64", *files]
    small = ["--num-prompts", "2", "--prompt-len", "8", "--output-len", "8"]
    assert run([*command, *small, "--kv-cache-dtype", "bfloat16"]) == 0
    assert "perplexity" in capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["perplexity"]["subject"] == pytest.approx(found["perplexity"]["reference"], rel=0.05)
    assert found["perplexity"]["subject"] != found["perplexity"]["reference"]
    assert found["agreement"]["num_answers"] == 2
    assert found["environment"]["software"]["torch"]
    assert run([*command, *small, "--reference", "[]"]) == 2
    assert "--reference" in capsys.readouterr().err
    assert run([*command, *small, "--num-prompts", "900"]) == 2
    assert "--num-prompts" in capsys.readouterr().err
