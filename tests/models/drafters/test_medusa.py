"""Medusa heads of every layout compute what the paper says; the tensors, not the config, say how many there are."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from paceline.core.errors import CheckpointError
from paceline.models import Quantization, load_model, outline_model
from paceline.models.drafters import load_medusa_heads, outline_medusa_heads
from tests.draft_checkpoints import tiny_eagle, tiny_medusa
from tests.models.drafters.reference import double, medusa
from tests.support.checkpoints import dense_attend, edit_json, full_pass, tiny_llama
from tests.support.zoo import random_tokens

VOCAB = 61
FILE = "medusa_lm_head.safetensors"
VARIANTS = {
    "plain": {},
    "model.safetensors": {"file": "model.safetensors"},
    "two blocks": {"layers": 2, "heads": 2},
    "eleven heads": {"heads": 11},
    "merged": {"prefix": "medusa_head."},
    "vllm": {"vllm": True, "file": "model.safetensors"},
    "vllm, unbiased": {"vllm": True, "biased": False, "layers": 2},
    "vllm, few tokens": {"vllm": True, "rows": 24, "prefix": "medusa_heads."},
}


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    directory = tmp_path_factory.mktemp("target")
    tiny_llama(directory, vocab_size=VOCAB, hidden=32)
    return load_model(directory, dtype=torch.float64)


def edit(directory, name, tensor):
    tensors = {**load_file(directory / FILE), name: tensor}
    save_file({key: value for key, value in tensors.items() if value is not None}, directory / FILE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_the_paper(variant, target, tmp_path):
    weights = double(tiny_medusa(tmp_path, target.config, **VARIANTS[variant]))
    heads = load_medusa_heads(tmp_path, target)
    assert heads.num_heads == VARIANTS[variant].get("heads", 3)
    with torch.inference_mode():
        hidden = full_pass(target, random_tokens(9), dense_attend(target))[0]
        found, expected = heads(hidden), medusa(weights, hidden, VOCAB)
    assert len(found) == len(expected) == heads.num_heads
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape == (9, VOCAB)
        assert torch.equal(ours.isinf(), theirs.isinf())
        assert (ours - theirs).masked_fill(theirs.isinf(), 0).abs().max() < 1e-9


@pytest.mark.parametrize("name", ["lm_heads.0.weight", "lm_head.weight"])
def test_one_matrix_for_all_heads_is_read_once(name, target, tmp_path):
    """As vLLM has it where config.json says ``original_lm_head``."""
    weights = double(tiny_medusa(tmp_path, target.config, vllm=True, rows=24))
    matrix = load_file(tmp_path / FILE)["lm_heads.0.weight"]
    for head in range(3):
        edit(tmp_path, f"lm_heads.{head}.weight", None)
    edit(tmp_path, name, matrix)
    edit_json(tmp_path / "config.json", original_lm_head=True)
    heads = load_medusa_heads(tmp_path, target)
    outline = outline_medusa_heads(tmp_path, target)
    for made in (heads, outline):
        assert made.heads[2].head is made.heads[0].head
    with torch.inference_mode():
        hidden = full_pass(target, random_tokens(9), dense_attend(target))[0]
        expected = medusa({**weights, "1.1.weight": matrix.double(), "2.1.weight": matrix.double()}, hidden, VOCAB)
        for ours, theirs in zip(heads(hidden), expected, strict=True):
            assert (ours - theirs).masked_fill(theirs.isinf(), 0).abs().max() < 1e-9
    edit(tmp_path, name, None)
    with pytest.raises(CheckpointError, match="head 0 has no output matrix"):
        load_medusa_heads(tmp_path, target)


def test_the_targets_own_tensors_may_lie_beside_merged_heads(target, tmp_path):
    tiny_medusa(tmp_path, target.config, prefix="medusa_head.")
    edit(tmp_path, "model.norm.weight", torch.ones(32))
    assert load_medusa_heads(tmp_path, target).num_heads == 3


@pytest.mark.parametrize(
    ("name", "tensor", "match"),
    [
        ("1.1.weight", None, "head 1 has no output matrix"),
        ("1.0.linear.bias", torch.zeros(3), r"has shape \[3\]"),
        ("0.0.linear.weight", torch.zeros(48, 48), "made for a target of hidden_size 48, and the target has 32"),
        ("extra.weight", torch.zeros(3), "unexpected tensor 'extra.weight'"),
        ("0.1.weight", torch.zeros(70, 32), "heads have 70 rows, the target 61 tokens, and there is no token_map"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(name, tensor, match, target, tmp_path):
    tiny_medusa(tmp_path, target.config)
    edit(tmp_path, name, tensor)
    with pytest.raises(CheckpointError, match=match):
        load_medusa_heads(tmp_path, target)


def test_what_holds_no_heads_is_refused(target, tmp_path):
    tiny_eagle(tmp_path, target.config)
    with pytest.raises(CheckpointError, match=r"holds no Medusa heads, its tensors begin with .*\nGive the directory"):
        load_medusa_heads(tmp_path, target)
    tiny_medusa(tmp_path / "pickled", target.config, file="medusa_lm_head.pt")
    with pytest.raises(CheckpointError, match=r"only as pickles \(medusa_lm_head.pt\).*\nConvert them once"):
        load_medusa_heads(tmp_path / "pickled", target)


@pytest.mark.parametrize("quantization", [None, Quantization("int8")])
def test_an_outline_has_the_same_sizes(quantization, tmp_path):
    tiny_llama(tmp_path / "target", vocab_size=VOCAB, hidden=32)
    target = load_model(tmp_path / "target")
    tiny_medusa(tmp_path / "heads", target.config)
    loaded = load_medusa_heads(tmp_path / "heads", target, quantization=quantization)
    outline = outline_medusa_heads(tmp_path / "heads", outline_model(tmp_path / "target"), quantization=quantization)
    assert all(parameter.is_meta for parameter in outline.parameters())
    assert loaded.heads[0].head.quantised == (quantization is not None)
    if quantization is None:
        sizes = [{name: p.shape for name, p in heads.named_parameters()} for heads in (loaded, outline)]
        assert sizes[0] == sizes[1]
