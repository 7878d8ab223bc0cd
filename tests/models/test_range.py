"""Weights that a dtype cannot hold are named when the model is loaded, with the dtypes that can."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from paceline import LLM, CheckpointError
from paceline.layers.linear import Linear
from paceline.models import Quantization, load_model
from paceline.runner import Choice, model_impls
from tests.support.checkpoints import full_logits, tiny_gpt2, tiny_llama
from tests.support.zoo import tiny

PROMPT = [0, 17, 25, 3]
FAMILIES = {
    "llama": "model.embed_tokens.weight",
    "mistral": "model.layers.1.self_attn.k_proj.weight",
    "qwen2": "model.layers.0.self_attn.v_proj.bias",
    "qwen3": "model.layers.1.self_attn.q_norm.weight",
    "gemma2": "model.layers.0.self_attn.o_proj.weight",
    "phi3": "model.layers.1.mlp.gate_up_proj.weight",
    "gpt_neox": "gpt_neox.layers.1.attention.query_key_value.weight",
    "opt": "model.decoder.embed_positions.weight",
    "gpt2": "transformer.h.1.mlp.c_fc.weight",
}


def plant(path, name, value, dtype=torch.bfloat16):
    """Puts a value into the middle of a tensor, all of which are stored in the dtype."""
    tensors = {other: tensor.to(dtype) for other, tensor in load_file(path / "model.safetensors").items()}
    flat = tensors[name].flatten().clone()
    flat[len(flat) // 2] = value
    tensors[name] = flat.view(tensors[name].shape)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("value", [70000.0, -1e30])
@pytest.mark.parametrize(("family", "name"), FAMILIES.items(), ids=FAMILIES)
def test_numbers_that_float16_lacks_are_named(tmp_path, family, name, value):
    if family == "gpt2":
        tiny_gpt2(tmp_path)
    else:
        tiny(tmp_path, family)
    plant(tmp_path, name, value)
    size = f"{torch.tensor(abs(value)).bfloat16().item():.5g}".replace("+", r"\+")
    expected = rf"model.safetensors: tensor '{name}': a number of size {size} is beyond float16, which ends at 65504\n"
    with pytest.raises(CheckpointError, match=f"{expected}Set dtype to bfloat16 or float32 or float64"):
        load_model(tmp_path, dtype="float16")
    for dtype in ("auto", "bfloat16", "float32"):
        held = load_model(tmp_path, dtype=dtype).parameters()
        assert max(parameter.abs().max().item() for parameter in held) >= 65536


@pytest.mark.parametrize(
    ("stored", "loaded", "value", "able"),
    [
        (torch.float32, "bfloat16", 3.4e38, "float32 or float64"),
        (torch.float32, "float16", 65520.0, "bfloat16 or float32 or float64"),
        (torch.float64, "float32", 1e300, "float64"),
    ],
    ids=str,
)
def test_other_types_that_do_not_reach(tmp_path, stored, loaded, value, able):
    tiny_llama(tmp_path)
    plant(tmp_path, "lm_head.weight", value, stored)
    with pytest.raises(CheckpointError, match=rf"'lm_head.weight': .* is beyond {loaded}.*\nSet dtype to {able}\."):
        load_model(tmp_path, dtype=loaded)


@pytest.mark.parametrize("value", [65503.0, 65519.0, 1e-30])
def test_numbers_that_round_to_what_there_is_load(tmp_path, value):
    tiny_llama(tmp_path)
    plant(tmp_path, "lm_head.weight", value, torch.float32)
    assert load_model(tmp_path, dtype="float16").head.weight.isfinite().all()


def test_what_is_infinite_in_the_file_is_not_a_matter_of_range(tmp_path):
    tiny_llama(tmp_path)
    plant(tmp_path, "model.embed_tokens.weight", -torch.inf)
    assert load_model(tmp_path, dtype="float16").embedding.tokens.weight.isneginf().sum() == 1


def test_a_number_beside_what_is_no_number_is_found(tmp_path):
    tiny_llama(tmp_path)
    plant(tmp_path, "lm_head.weight", 1e6)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"][0, 0] = torch.nan
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"'lm_head.weight': a number of size 9.*e\+05 is beyond float16"):
        load_model(tmp_path, dtype="float16")


def test_the_library_says_so_before_anything_is_generated(tmp_path):
    tiny_llama(tmp_path)
    plant(tmp_path, "model.norm.weight", 1e6)
    with pytest.raises(CheckpointError, match=r"'model.norm.weight': .* beyond float16"):
        LLM(tmp_path, dtype="float16")


def test_matrices_that_are_quantised_may_be_larger(tmp_path):
    """Their scales are float32; what torch computes with has to fit."""
    tiny_llama(tmp_path)
    plant(tmp_path, "model.layers.0.mlp.down_proj.weight", 1e6)
    model = load_model(tmp_path, dtype="float16", quantization=Quantization("int8"))
    with pytest.raises(CheckpointError, match=r"of blocks.0.mlp.down: a number of size 9.*e\+05 is beyond float16"):
        model_impls["torch"].prepare_weights(Choice(), model)
    wider = load_model(tmp_path, dtype="float32", quantization=Quantization("int8"))
    model_impls["torch"].prepare_weights(Choice(), wider)
    assert isinstance(wider.head, Linear)
    assert full_logits(wider, PROMPT).isfinite().all()
