"""What the loader refuses, and that it says which file and why."""

from __future__ import annotations

import json
import struct
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from paceline.core.errors import CheckpointError
from paceline.models import hub, load_config, load_model, resolve_model
from tests.support.checkpoints import edit_json, tiny_gpt2, tiny_llama
from tests.support.zoo import longrope, tiny


@pytest.fixture
def llama(tmp_path):
    tiny_llama(tmp_path)
    return tmp_path


def refused(path, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        load_model(path)
    return str(caught.value)


def edit_tensors(directory, **changes):
    """Replaces tensors of model.safetensors; None removes one."""
    tensors = load_file(directory / "model.safetensors") | changes
    save_file({name: t for name, t in tensors.items() if t is not None}, directory / "model.safetensors")


CONFIGS = [
    ({"model_type": "mamba"}, "model_type 'mamba' is not supported\nSupported: gemma2, gemma3, .*, llama, .*, qwen3"),
    ({"model_type": ["llama"]}, "is not supported"),
    ({"auto_map": {"AutoModel": "code.Model"}}, "'auto_map': the model asks for code"),
    ({"auto_map": {"AutoModel": "code.Model"}}, "never runs a checkpoint's code; remove the key from a copy"),
    ({"auto_map": {}, "model_type": "mamba"}, "never runs a checkpoint's code; use a version"),
    ({"trust_remote_code": True}, "config.json has 'trust_remote_code': the model asks for code"),
    ({"trust_remote_code": "yes"}, "'trust_remote_code'"),
    ({"_attn_implementation_internal": "someone/kernel"}, "'_attn_implementation_internal'"),
    (
        {"quantization_config": {"quant_method": "gptq"}},
        "quantised by 'gptq', and only compressed-tensors can be read\nGive the unquantised",
    ),
    ({"hidden_size": "32"}, "hidden_size must be an integer in .*, got '32'"),
    ({"hidden_size": None}, "hidden_size must be an integer in .*missing"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers must be an integer in"),
    ({"num_key_value_heads": 3}, "num_key_value_heads must be a divisor of num_attention_heads"),
    ({"head_dim": 7}, "turn an even part of head_dim, got 7 of 7"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a number above 0"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false"),
    ({"hidden_act": "prelu"}, "hidden_act must be one of gelu"),
    ({"hidden_act": "xielu"}, "hidden_act must be one of gelu"),
    ({"hidden_act": ["silu"]}, "hidden_act must be one of gelu"),
    ({"eos_token_id": "end"}, "eos_token_id must be a token id"),
    ({"dtype": "int4"}, "dtype must be one of float16"),
    ({"rope_parameters": [1]}, "rope_parameters must be an object"),
    ({"rope_parameters": {"rope_type": "mrope", "factor": 2.0}}, "rotary kind 'mrope' .*\nSupported: default, dynam"),
    ({"rope_parameters": {"rope_type": ["yarn"]}}, "rotary kind .* is not supported"),
    ({"rope_parameters": {"rope_type": "linear"}}, "factor must be a number above 0, and is missing"),
    ({"rope_parameters": {"rope_type": "linear", "factor": 10**400}}, "factor must be a number above 0"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1}}, "describes no possible model"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": "x"}}, "mscale must be a number above 0"),
    (
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        "rope_parameters must be one description for all",
    ),
    ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0**40}}, "factor must be at most 8388607"),
    ({"rope_parameters": {"rope_type": "dynamic"}}, "factor must be a number above 0, and is missing"),
    ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "short_factor must be a list of 4 numbers"),
    ({"rope_parameters": longrope(3)}, "short_factor must be a list of 4 numbers, got 3"),
    ({"rope_parameters": longrope(4) | {"long_factor": [1, 2, 3, 0]}}, "long_factor must be a number above 0, got 0"),
    ({"rope_parameters": longrope(4) | {"original_max_position_embeddings": 1}}, "describes no possible model"),
    ({"rope_parameters": {"partial_rotary_factor": 0.7}}, "an even part of head_dim, got 5 of 8"),
    ({"rope_parameters": {"partial_rotary_factor": 2}}, "an even part of head_dim, got 16 of 8"),
]


@pytest.mark.parametrize(("changes", "match"), CONFIGS, ids=[next(iter(changes)) for changes, _ in CONFIGS])
def test_config(llama, changes, match):
    edit_json(llama / "config.json", **changes)
    assert "config.json" in refused(llama, match)


def test_a_lying_config_allocates_nothing(llama):
    edit_json(llama / "config.json", vocab_size=2**26, hidden_size=2**26, max_position_embeddings=2**31 - 1)
    assert "model.safetensors" in refused(llama, r"has shape .* config.json implies \[67108864, 67108864\]")
    edit_json(llama / "config.json", num_attention_heads=2**26, num_key_value_heads=1, head_dim=2**26)
    refused(llama, "config.json describes no possible model")


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, "\xff"])
def test_config_that_is_not_an_object(llama, text):
    (llama / "config.json").write_text(text, encoding="latin-1")
    refused(llama, r"config.json (cannot be read as JSON|must hold a JSON object)")


def test_missing_config(llama):
    (llama / "config.json").unlink()
    refused(llama, "config.json is missing\nGive a Hugging Face model directory")


def test_gpt2_config(tmp_path):
    tiny_gpt2(tmp_path)
    edit_json(tmp_path / "config.json", n_head=5)
    refused(tmp_path, "n_head must be a divisor of n_embd")
    edit_json(tmp_path / "config.json", n_head=4, add_cross_attention=True)
    refused(tmp_path, "add_cross_attention must be false")


FAMILIES = [
    ("mistral", {"sliding_window": 0}, r"sliding_window must be an integer in \[1, "),
    ("qwen2", {"layer_types": ["full_attention"]}, "layer_types must be 2 times sliding_attention or full_attention"),
    ("qwen3", {"layer_types": ["full_attention", "linear"]}, "layer_types must be 2 times"),
    ("qwen3", {"use_sliding_window": "yes"}, "use_sliding_window must be true or false"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention must be false"),
    ("gemma2", {"attn_logit_softcapping": -1}, "attn_logit_softcapping must be a number above 0"),
    ("gemma3_text", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping must be null"),
    ("gemma3_text", {"rope_parameters": {"full_attention": 3}}, "full_attention must be an object"),
    ("gemma3_text", {"model_type": "gemma3", "text_config": [1]}, "text_config must be an object"),
    ("phi3", {"rope_parameters": {"rope_type": "su"}}, "short_factor must be a list of 4 numbers"),
    ("phi3", {"rope_scaling": 3, "rope_parameters": None}, "rope_scaling must be an object"),
    ("gpt_neox", {"num_attention_heads": 5}, "num_attention_heads must be a divisor of hidden_size"),
    ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 0.1}}, "an even part of head_dim, got 0 of 8"),
    ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine must be true"),
    ("opt", {"num_attention_heads": 5}, "num_attention_heads must be a divisor of hidden_size"),
]


@pytest.mark.parametrize(
    ("family", "changes", "match"), FAMILIES, ids=[f"{name}-{next(iter(c))}" for name, c, _ in FAMILIES]
)
def test_config_of_a_family(tmp_path, family, changes, match):
    tiny(tmp_path, family)
    edit_json(tmp_path / "config.json", **changes)
    assert "config.json" in refused(tmp_path, match)


LAYOUTS = [
    ("mistral", {"num_hidden_layers": 1}, "unexpected tensor 'model.layers.1."),
    ("mistral", {"num_hidden_layers": 3}, r"tensor 'model.layers.2.* and \d+ more is missing"),
    ("qwen3", {"head_dim": 8}, r"tensor 'model.layers.0.self_attn.\w+.weight' has shape"),
    ("qwen2", {"model_type": "llama"}, "unexpected tensor 'model.layers.0.self_attn.k_proj.bias'"),
    (
        "phi3",
        {"num_key_value_heads": 2},
        r"self_attn.qkv_proj.weight' has shape \[96, 32\], config.json implies \[64, 32\]",
    ),
    ("gpt_neox", {"attention_bias": False}, "unexpected tensor 'gpt_neox.layers.0.attention.dense.bias'"),
    ("gpt_neox", {"hidden_size": 64}, r"has shape \[\d+(, \d+)?\], config.json implies"),
    ("opt", {"do_layer_norm_before": False}, "unexpected tensor 'model.decoder.final_layer_norm.bias'"),
    ("opt", {"word_embed_proj_dim": 20}, "has shape .*, config.json implies"),
    ("gemma2", {"tie_word_embeddings": False}, "tensor 'lm_head.weight' is missing"),
]


@pytest.mark.parametrize(
    ("family", "changes", "match"), LAYOUTS, ids=[f"{name}-{next(iter(c))}" for name, c, _ in LAYOUTS]
)
def test_config_that_describes_other_tensors(tmp_path, family, changes, match):
    tiny(tmp_path, family)
    edit_json(tmp_path / "config.json", **changes)
    assert "model.safetensors" in refused(tmp_path, match) or "missing" in match


def test_projections_of_one_head_norm_are_told_apart(tmp_path):
    tiny(tmp_path, "qwen3")
    edit_tensors(tmp_path, **{"model.layers.1.self_attn.k_norm.weight": torch.ones(4, 16)})
    refused(
        tmp_path, r"tensor 'model.layers.1.self_attn.k_norm.weight' has shape \[4, 16\], config.json implies \[16\]"
    )


TENSORS = [
    ({"model.norm.weight": None}, "'model.norm.weight' is missing"),
    ({"model.norm.weight": None, "lm_head.weight": None}, "'model.norm.weight' and 1 more is missing"),
    ({"model.norm.bias": torch.ones(32)}, "model.safetensors: unexpected tensor 'model.norm.bias'"),
    ({"model.layers.2.mlp.down_proj.weight": torch.ones(1)}, "unexpected tensor 'model.layers.2.mlp.down_proj.weight'"),
    ({"model.norm.weight": torch.ones(33)}, r"model.safetensors: tensor 'model.norm.weight' has shape \[33\]"),
    ({"model.norm.weight": torch.ones(32, dtype=torch.int8)}, "tensor 'model.norm.weight' is I8"),
    ({"norm.weight": torch.ones(32)}, "'model.norm.weight' comes twice"),
]


@pytest.mark.parametrize(("changes", "match"), TENSORS, ids=[match for _, match in TENSORS])
def test_tensors(llama, changes, match):
    edit_tensors(llama, **changes)
    refused(llama, match)


@pytest.mark.parametrize("keep", [0, 4, 100, -1, -1000])
def test_truncated_safetensors(llama, keep):
    file = llama / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(llama, "model.safetensors is truncated or corrupt")


@pytest.mark.parametrize("header", [b"not json", b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}'])
def test_corrupt_safetensors(llama, header):
    (llama / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    refused(llama, "model.safetensors is truncated or corrupt")


@pytest.fixture
def sharded(tmp_path):
    tiny_llama(tmp_path, max_shard_size="20KB")
    return tmp_path


def edit_index(directory, change):
    index = directory / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    change(values)
    index.write_text(json.dumps(values))


ESCAPES = ["../model.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\x.safetensors", ".safetensors", 3, "x"]


@pytest.mark.parametrize("file", [*ESCAPES, "pytorch_model.bin"])
def test_index_that_leaves_the_directory(sharded, file):
    edit_index(sharded, lambda values: values["weight_map"].update({"model.norm.weight": file}))
    refused(sharded, "index.json places tensor 'model.norm.weight' in .* not a safetensors file of its own directory")


def test_index_without_a_map(sharded):
    edit_index(sharded, lambda values: values.clear())
    refused(sharded, "index.json has no weight_map")


def test_index_that_does_not_fit_its_files(sharded):
    files = sorted(sharded.glob("model-*.safetensors"))
    edit_index(sharded, lambda values: values["weight_map"].update({"model.extra": files[0].name}))
    refused(sharded, "has no tensor 'model.extra', which")
    files[0].unlink()
    refused(sharded, f"{files[0].name} is missing")


def test_pickles_are_never_opened(llama):
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    refused(llama, "only as pickles .pytorch_model.bin.*\nConvert them to safetensors")
    (llama / "pytorch_model.bin").unlink()
    refused(llama, "has neither model.safetensors nor model.safetensors.index.json")


@pytest.mark.parametrize(
    "change",
    [{"hidden_size": -4}, {"rms_norm_eps": "x"}, {"attention_bias": 1}, {"hidden_act": "x"}, {"eos_token_id": "x"}],
    ids=lambda change: next(iter(change)),
)
def test_a_value_that_cannot_be_is_told_with_what_to_do(llama, change):
    edit_json(llama / "config.json", **change)
    cause, fix = refused(llama, f"{next(iter(change))} must be").splitlines()
    assert "config.json" in cause
    assert fix == "Download the file again, or correct it as the model was trained."


def test_refusals_hold_without_asserts(llama):
    edit_json(llama / "config.json", auto_map={"AutoModel": "code.Model"})
    program = "import sys; from paceline.models import load_model; load_model(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-O", "-c", program, str(llama)], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "CheckpointError" in done.stderr


def test_code_that_is_not_asked_for(llama):
    edit_json(llama / "config.json", trust_remote_code=False)
    load_model(llama)


def test_neither_a_directory_nor_a_hub_model(tmp_path, monkeypatch):
    def offline(name, **patterns):
        assert not any(pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in patterns["allow_patterns"])
        raise ConnectionError("no route to the hub\nmore lines")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"^'owner/name' is not a local directory .* no route to the hub\nGive a"):
        resolve_model("owner/name")
    with pytest.raises(CheckpointError, match=r"^there is no directory .*absent\nGive a model directory"):
        load_config(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        resolve_model(str(tmp_path / "file"))


def test_hub_model_is_downloaded_once_named(llama, monkeypatch):
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **_: str(llama))
    assert resolve_model("owner/name") == llama
    assert load_model("owner/name").config.vocab_size == 320
