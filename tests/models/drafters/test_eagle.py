"""EAGLE-1 modules of both layouts compute what the paper says."""

from __future__ import annotations

import pytest
import torch

from paceline.core.errors import CheckpointError
from paceline.models import load_model
from paceline.models.drafters import draft_modules, load_draft_module
from paceline.models.drafters.family import family_of
from paceline.models.drafters.source import DraftSource
from tests.draft_checkpoints import tiny_eagle
from tests.models.drafters.reference import double, eagle
from tests.models.drafters.test_eagle3 import LENGTH, VOCAB, edit, module_pass
from tests.support.checkpoints import dense_attend, edit_json, full_pass, tiny_llama
from tests.support.zoo import random_tokens


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    directory = tmp_path_factory.mktemp("target")
    tiny_llama(directory, vocab_size=VOCAB, hidden=32, max_positions=96)
    return load_model(directory, dtype=torch.float64)


@pytest.mark.parametrize(
    "options",
    [{}, {"biased": False}, {"layers": 2}, {"speculators": True}, {"speculators": True, "biased": False}],
    ids=["plain", "unbiased", "two layers", "speculators", "speculators, unbiased"],
)
def test_logits_are_those_of_the_paper(options, target, tmp_path):
    weights = double(tiny_eagle(tmp_path, target.config, **options))
    module = load_draft_module(tmp_path, target)
    assert module.taps == ()  # what leaves the target's final norm
    assert module.head is target.head
    assert module.embedding.tokens is target.embedding.tokens
    tokens = random_tokens(LENGTH, seed=3)
    with torch.inference_mode():
        features = module.fuse(full_pass(target, tokens, dense_attend(target))[0])
    head, embedded = target.head.weight, target.embedding.tokens.weight[torch.tensor(tokens)]
    positions = torch.arange(1, LENGTH)
    expected = eagle(weights, embedded[1:], features[:-1], positions, head)
    again = eagle(weights, embedded[2:], expected[1][:-1], positions[1:], head)
    logits, stream, hidden = module_pass(module, tokens[1:], features[:-1])
    assert torch.equal(stream, hidden)
    found_again = module_pass(module, tokens[2:], stream[:-1], first=2)
    for ours, theirs in zip((logits, stream, *found_again[:2]), (*expected, *again), strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"vocab_size": 100}, "vocab_size is 100, and the target has 61 tokens"),
        ({"hidden_size": 64}, "hidden_size is 64, and the target's embedding table, which it shares, has 32"),
    ],
)
def test_configs_that_do_not_fit_are_refused(config, match, target, tmp_path):
    tiny_eagle(tmp_path, target.config)
    edit_json(tmp_path / "config.json", **config)
    with pytest.raises(CheckpointError, match=match):
        load_draft_module(tmp_path, target)


@pytest.mark.parametrize(
    ("name", "tensor", "match"),
    [
        ("layers.0.mlp.up_proj.weight", None, "up_proj.weight' is missing"),
        ("norm.weight", torch.ones(32), "unexpected tensor 'norm.weight'"),
        ("fc.weight", torch.zeros(32, 32), r"has shape \[32, 32\]"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(name, tensor, match, target, tmp_path):
    tiny_eagle(tmp_path, target.config)
    edit(tmp_path, name, tensor)
    with pytest.raises(CheckpointError, match=match):
        load_draft_module(tmp_path, target)


def test_its_config_alone_tells_it_from_its_relatives(target, tmp_path):
    tiny_eagle(tmp_path, target.config, speculators=True)
    (tmp_path / "model.safetensors").unlink()
    for kind, is_eagle in (("eagle", True), ("eagle3", False), ("peagle", False)):
        edit_json(tmp_path / "config.json", speculators_model_type=kind, architectures=[f"{kind.title()}Speculator"])
        found = family_of(DraftSource.read(tmp_path, target, weights=False))
        assert (found is draft_modules["eagle"]) == is_eagle, kind
