"""Every family computes what transformers computes, from config files of both generations."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from paceline.attention import sdpa
from paceline.models import CausalLM, families, load_config, load_model
from paceline.models.config import Fields
from paceline.runner.native.buffers import GroupBuffers
from tests.draft_checkpoints_mtp import tiny_mimo
from tests.support.checkpoints import edit_json, full_logits
from tests.support.native import needs_library
from tests.support.zoo import (
    MAX_POSITIONS,
    WINDOW,
    assert_continues,
    random_tokens,
    reference_logits,
    tiny,
    tiny_gemma3_with_vision,
    to_legacy,
)

NEW_TOKENS = 20
row_rule = sys.modules["paceline.runner.rows"]
LINEAR = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 24}
NEOX_ROPE = {"rope_type": "default", "rope_theta": 1e4}
PHI_ROPE = {"rope_type": "default", "rope_theta": 2.5e5}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("mistral", {}),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "mistral, head_dim, one kv head": ("mistral", {"head_dim": 12, "num_key_value_heads": 1}),
    "mistral, tied, yarn": ("mistral", {"tie_word_embeddings": True, "rope_parameters": YARN}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied, multi-head": ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "qwen2, late windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1, "num_hidden_layers": 3},
    ),
    "qwen2, llama3 rotary": ("qwen2", {"rope_parameters": LLAMA3}),
    "qwen3": ("qwen3", {}),
    "qwen3, tied, biased, one kv head": (
        "qwen3",
        {"tie_word_embeddings": True, "attention_bias": True, "num_key_value_heads": 1},
    ),
    "qwen3, late windows": ("qwen3", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "gemma2": ("gemma2", {}),
    "gemma2, untied, biased": ("gemma2", {"tie_word_embeddings": False, "attention_bias": True}),
    "gemma2, no soft caps, one kv head": (
        "gemma2",
        {"attn_logit_softcapping": None, "final_logit_softcapping": None, "num_key_value_heads": 1},
    ),
    "gemma3": ("gemma3_text", {}),
    "gemma3, linear rotary": ("gemma3_text", {"rope_parameters": LINEAR}),
    "gemma3, soft cap on logits": ("gemma3_text", {"final_logit_softcapping": 3.0, "num_key_value_heads": 1}),
    "phi3": ("phi3", {"sliding_window": 11}),
    "phi3, grouped, no window": ("phi3", {"num_key_value_heads": 2, "rope_parameters": PHI_ROPE}),
    "phi3, tied, partial rotary": (
        "phi3",
        {"tie_word_embeddings": True, "rope_parameters": {**PHI_ROPE, "partial_rotary_factor": 0.5}},
    ),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox, sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "gpt_neox, full rotary, tied": (
        "gpt_neox",
        {"rope_parameters": {**NEOX_ROPE, "partial_rotary_factor": 1.0}, "tie_word_embeddings": True},
    ),
    "gpt_neox, no bias, linear rotary": (
        "gpt_neox",
        {
            "attention_bias": False,
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        },
    ),
    "opt": ("opt", {}),
    "opt 350m": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 20, "seed": 7}),
    "opt, no bias, untied": ("opt", {"enable_bias": False, "tie_word_embeddings": False}),
    "opt, no final norm": ("opt", {"_remove_final_layer_norm": True}),
}


def assert_same(reference: Any, directory: Any, **options: Any) -> Any:
    model = load_model(directory, **options)
    tokens = random_tokens(40)
    torch.testing.assert_close(full_logits(model, tokens), reference_logits(reference, tokens), atol=2e-4, rtol=0)
    return model


def _plain(value: Any) -> Any:
    """Without the old name of ``rope_type``, which transformers keeps beside the new one."""
    if not isinstance(value, dict):
        return value
    return {key: _plain(inner) for key, inner in value.items() if key != "type"}


@pytest.mark.parametrize(("family", "options"), VARIANTS.values(), ids=VARIANTS)
def test_both_generations_of_config(tmp_path, family, options):
    reference = tiny(tmp_path, family, **options)
    model = assert_same(reference, tmp_path)
    text = assert_continues(reference, model, random_tokens(12), NEW_TOKENS)
    written = load_config(tmp_path)
    theirs = type(reference.config).from_dict(to_legacy(tmp_path / "config.json"))
    for name in ("rope_parameters", "layer_types", "sliding_window"):  # transformers reads the older file alike
        assert _plain(getattr(theirs, name, None)) == _plain(getattr(reference.config, name, None))
    assert load_config(tmp_path) == written
    assert assert_continues(reference, assert_same(reference, tmp_path), random_tokens(12), NEW_TOKENS) == text


def rename_tensors(directory: Any, rename: Any, **more: torch.Tensor) -> None:
    tensors = load_file(directory / "model.safetensors")
    save_file({rename(name): tensor for name, tensor in tensors.items()} | more, directory / "model.safetensors")


@pytest.mark.parametrize("language_model", ["language_model.model.", "model.language_model."])
def test_gemma3_beside_a_vision_model(tmp_path, language_model):
    """Both ways in which its text model's tensors are named, with a text_config that leaves defaults out."""
    reference = tiny_gemma3_with_vision(tmp_path)
    text = {f"{prefix}language_model.{inner}": "" for prefix in ("", "model.") for inner in ("", "model.")}

    def rename(name: str) -> str:
        if "language_model" not in name:
            return name
        bare = next(name.removeprefix(prefix) for prefix in sorted(text, key=len)[::-1] if name.startswith(prefix))
        return language_model + bare

    rename_tensors(tmp_path, rename)
    names = load_file(tmp_path / "model.safetensors")
    assert any(name.startswith(language_model) for name in names)
    assert any("vision_tower" in name for name in names)
    assert any("multi_modal_projector" in name for name in names)
    model = assert_same(reference, tmp_path)
    assert_continues(reference, model, random_tokens(12), NEW_TOKENS)
    text_config = to_legacy_text(tmp_path / "config.json")
    assert "num_key_value_heads" in text_config
    assert load_config(tmp_path).eos_token_ids == {1}
    assert_same(reference, tmp_path)


@pytest.mark.parametrize(
    "options",
    [{}, {"num_key_value_heads": 1, "num_modules": 3}, {"use_sliding_window": True, "sliding_window": WINDOW}],
    ids=["published", "several modules", "windows"],
)
def test_mimo_is_qwen2_beside_modules_that_draft(tmp_path, options):
    reference = tiny_mimo(tmp_path, **options)
    assert any(".mtp_layers.0.input_proj." in name for name in load_file(tmp_path / "model.safetensors"))
    model = assert_same(reference, tmp_path)
    assert_continues(reference, model, random_tokens(12), NEW_TOKENS)


def to_legacy_text(path: Any) -> dict[str, Any]:
    whole = json.loads(path.read_text())
    text_path = path.with_name("text.json")
    text_path.write_text(json.dumps({"dtype": "float32", **whole["text_config"]}))
    text = to_legacy(text_path)
    for key in ("eos_token_id", "bos_token_id", "torch_dtype"):
        whole[key] = text.pop(key)
    for key in ("model_type", "attention_bias", "hidden_activation", "rms_norm_eps", "tie_word_embeddings"):
        text.pop(key)
    whole.pop("dtype", None)
    path.write_text(json.dumps(whole | {"text_config": text}))
    return text


def test_a_gemma3_text_config_that_says_little():
    """As that of Gemma 3 4B, whose silence means the published sizes."""
    path = Path("config.json")
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    rope = {"factor": 8.0, "rope_type": "linear"}
    fields = Fields(path, {"model_type": "gemma3", "text_config": {**text, "rope_scaling": rope}, "eos_token_id": [1]})
    config = families["gemma3"].read_config(fields, None)
    assert (config.num_heads, config.num_kv_heads, config.head_dim, config.vocab_size) == (8, 4, 256, 262_208)
    assert (config.max_position_embeddings, config.tied, config.score_scale) == (131_072, True, 1 / 16)
    assert [config.windows[layer] for layer in (0, 4, 5, 6, 11)] == [1024, 1024, None, 1024, None]
    full, local = config.rotaries
    assert (full.kind, full.theta, full.scaling, local.kind, local.theta) == (
        "linear",
        1e6,
        {"factor": 8},
        "default",
        1e4,
    )
    assert [config.rotary_of[layer] for layer in (0, 5)] == [1, 0]


def test_names_and_buffers_of_old_pythia(tmp_path):
    reference = tiny(tmp_path, "gpt_neox")
    extras = {
        "attention.bias": torch.ones(1, 1, MAX_POSITIONS, MAX_POSITIONS).tril(),
        "attention.masked_bias": torch.tensor(-1e9),
        "attention.rotary_emb.inv_freq": torch.ones(1),
    }
    buffers = {f"gpt_neox.layers.{layer}.{name}": value for layer in range(2) for name, value in extras.items()}
    for head in ("embed_out", "lm_head"):
        rename_tensors(tmp_path, lambda name, head=head: name.replace("lm_head", head).replace("embed_out", head))
        assert_same(reference, tmp_path)
    rename_tensors(tmp_path, lambda name: name, **{name: value.clone() for name, value in buffers.items()})
    assert_same(reference, tmp_path)


def test_opt_files_without_the_model_prefix(tmp_path):
    reference = tiny(tmp_path, "opt")
    rename_tensors(tmp_path, lambda name: name.removeprefix("model."))
    assert all(name.startswith("decoder.") for name in load_file(tmp_path / "model.safetensors"))
    assert_same(reference, tmp_path)


@pytest.mark.parametrize("make", ["gemma2", "gemma3_text", "qwen3", "gpt_neox", "phi3", "opt"])
def test_half_precision_agrees_with_transformers_in_half_precision(tmp_path, make):
    reference = tiny(tmp_path, make, dtype=torch.bfloat16, initializer_range=0.2)
    tokens = random_tokens(24)
    exact = reference_logits(reference, tokens)
    theirs = (reference_logits(reference.bfloat16(), tokens).float() - exact).abs().mean()
    ours = (full_logits(load_model(tmp_path, dtype=torch.bfloat16), tokens).float() - exact).abs().mean()
    assert ours < 1.5 * theirs


@pytest.mark.parametrize(("family", "options"), [("mistral", {}), ("phi3", {"sliding_window": 11}), ("gemma2", {})])
def test_a_window_that_nothing_can_leave_is_none(tmp_path, family, options):
    tiny(tmp_path, family, **options)
    windows = {spec.window for spec in load_model(tmp_path).layer_specs}
    assert windows <= {None, WINDOW, 11}
    assert len(windows - {None}) == 1
    edit_json(tmp_path / "config.json", sliding_window=MAX_POSITIONS)
    assert {spec.window for spec in load_model(tmp_path).layer_specs} == {None}


def without_softcap(model: CausalLM) -> None:
    model.layer_specs = tuple(replace(spec, softcap=None) for spec in model.layer_specs)


def without_logit_softcap(model: CausalLM) -> None:
    model.logit_softcap = None


def window_off_by_one(model: CausalLM) -> None:
    wider = (replace(spec, window=spec.window and spec.window + 1) for spec in model.layer_specs)
    model.layer_specs = tuple(wider)


def windows_on_the_other_layers(model: CausalLM) -> None:
    model.layer_specs = (*model.layer_specs[1:], model.layer_specs[0])


def embedding_unscaled(model: CausalLM) -> None:
    model.embedding.scale = None


def norms_lack_one(model: CausalLM) -> None:
    model.norm.weight.sub_(1)


def rotaries_swapped(model: CausalLM) -> None:
    model.rotary_of = tuple(1 - index for index in model.rotary_of)


def query_and_key_norms_swapped(model: CausalLM) -> None:
    for block in model.blocks:
        rows = block.attention.head_norm.weight
        rows.copy_(torch.cat([rows[4:], rows[:4]])[[0, 0, 0, 0, 2, 2]])


def positions_start_at_row_zero(model: CausalLM) -> None:
    model.embedding.first_position = 0


def heads_not_interleaved(model: CausalLM) -> None:
    for block in model.blocks:
        weight = block.attention.qkv.weight
        weight.copy_(block.attention.qkv.by_unit("weight").reshape(weight.shape))


PLANTS = [
    (without_softcap, "gemma2"),
    (without_logit_softcap, "gemma2"),
    (window_off_by_one, "gemma2"),
    (window_off_by_one, "mistral"),
    (windows_on_the_other_layers, "gemma2"),
    (embedding_unscaled, "gemma3_text"),
    (norms_lack_one, "gemma3_text"),
    (rotaries_swapped, "gemma3_text"),
    (query_and_key_norms_swapped, "qwen3"),
    (positions_start_at_row_zero, "opt"),
    (heads_not_interleaved, "gpt_neox"),
]


@pytest.mark.parametrize(("plant", "family"), PLANTS, ids=[f"{plant.__name__}-{family}" for plant, family in PLANTS])
def test_a_planted_bug_is_caught(tmp_path, plant, family):
    reference = tiny(tmp_path, family)
    tokens = random_tokens(40)
    expected = reference_logits(reference, tokens)
    model = load_model(tmp_path)
    torch.testing.assert_close(full_logits(model, tokens), expected, atol=2e-4, rtol=0)
    with torch.no_grad():
        plant(model)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(full_logits(model, tokens), expected, atol=2e-4, rtol=0)


def a_narrower_window(monkeypatch):
    true = row_rule.first_visible
    narrower = lambda group, positions, *more: (  # noqa: E731
        None if group.window is None else true(group, positions + 1, *more)
    )
    monkeypatch.setattr(row_rule, "first_visible", narrower)


def a_narrower_window_of_native_rows(monkeypatch):
    true = GroupBuffers.structures

    def narrower(self, *arrays):
        structs = true(self, *arrays)
        for struct in structs:
            struct.window = max(struct.window - 1, 0)
        return structs

    monkeypatch.setattr(GroupBuffers, "structures", narrower)


@pytest.mark.parametrize(
    ("family", "plant"),
    [
        ("gemma2", a_narrower_window),
        ("mistral", a_narrower_window),
        pytest.param("mistral", a_narrower_window_of_native_rows, marks=needs_library),
    ],
)
def test_a_window_off_by_one_in_the_engine_is_caught(tmp_path, family, plant, monkeypatch):
    reference = tiny(tmp_path, family)
    model = load_model(tmp_path)
    assert_continues(reference, model, random_tokens(12), 40)
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        assert_continues(reference, model, random_tokens(12), 40, enforce_eager=plant is a_narrower_window)


def test_a_softcap_left_out_by_the_attention_is_caught(tmp_path, monkeypatch):
    reference = tiny(tmp_path, "gemma2")
    model = load_model(tmp_path)
    assert_continues(reference, model, random_tokens(12), 40, attention_backend="sdpa")

    def plain(q, k, v, mask, spec):
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=spec.scale)

    monkeypatch.setattr(sdpa, "_softcapped", plain)
    with pytest.raises(AssertionError):
        assert_continues(reference, model, random_tokens(12), 40, attention_backend="sdpa")
