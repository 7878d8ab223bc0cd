"""Each family computes what transformers computes, however its directory is written."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from paceline.core.layer import PassContext
from paceline.layers.linear import Linear
from paceline.models import load_config, load_model
from tests.support.checkpoints import dense_attend, edit_json, full_logits, greedy, tiny_gpt2, tiny_llama

PROMPT = [0, 17, 250, 3, 99, 99, 4, 201, 64, 5]
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LLAMAS = {
    "grouped": {},
    "multi-head": {"num_kv_heads": 4},
    "multi-query": {"num_kv_heads": 1},
    "tied": {"tied": True},
    "llama3 rotary": {"rope": LLAMA3},
    "linear rotary": {"rope": {"rope_type": "linear", "factor": 4.0}},
    "yarn rotary": {"rope": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    "yarn rotary, all options": {
        "rope": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 8,
            "beta_slow": 0.5,
            "mscale": 0.7,
            "mscale_all_dim": 0.5,
            "truncate": False,
        }
    },
    "biased": {"bias": True, "mlp_bias": True},
    "head_dim": {"head_dim": 20},
}
GPT2S = {"plain": {}, "n_inner": {"intermediate": 40}, "scaled by depth": {"scale_by_depth": True, "layers": 3}}


def reference_logits(model, token_ids):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0]


def reference_greedy(model, prompt, num_tokens):
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(int(reference_logits(model, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def assert_same(reference, directory, **options):
    model = load_model(directory, **options)
    expected, found = reference_logits(reference, PROMPT), full_logits(model, PROMPT)
    torch.testing.assert_close(found.float(), expected, atol=2e-4, rtol=0)
    text = greedy(model, PROMPT, 12)
    assert text == reference_greedy(reference, PROMPT, 12)
    assert len(set(text)) > 2, "greedy output too dull to prove anything"
    return model


@pytest.mark.parametrize("options", LLAMAS.values(), ids=LLAMAS)
def test_llama(tmp_path, options):
    assert_same(tiny_llama(tmp_path, **options), tmp_path)


@pytest.mark.parametrize("options", GPT2S.values(), ids=GPT2S)
def test_gpt2(tmp_path, options):
    assert_same(tiny_gpt2(tmp_path, **options), tmp_path)


@pytest.mark.parametrize("rope", [None, LLAMA3], ids=["default", "llama3"])
def test_config_from_before_transformers_5(tmp_path, rope):
    reference = tiny_llama(tmp_path, rope=rope)
    assert_same(reference, tmp_path)
    scaling = rope and {"type" if key == "rope_type" else key: value for key, value in rope.items()}
    edit_json(
        tmp_path / "config.json",
        rope_parameters=None,
        rope_theta=10000.0,
        rope_scaling=scaling,
        dtype=None,
        torch_dtype="float32",
    )
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"head_dim": None, "rope_scaling": scaling}))
    assert_same(reference, tmp_path)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_sharded(tmp_path, make):
    reference = make(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_same(reference, tmp_path)


def test_names_and_buffers_of_the_gpt2_on_the_hub(tmp_path):
    reference = tiny_gpt2(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    for layer in range(2):
        renamed[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 256, 256).tril()
        renamed[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(renamed, tmp_path / "model.safetensors")
    edit_json(tmp_path / "config.json", dtype=None)
    assert_same(reference, tmp_path)


def test_old_llama_buffers_and_a_copy_of_tied_embeddings_are_skipped(tmp_path):
    reference = tiny_llama(tmp_path, tied=True)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same(reference, tmp_path)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_float64_engine(tmp_path, make):
    model = assert_same(make(tmp_path), tmp_path, dtype=torch.float64)
    assert all(tensor.dtype == torch.float64 for tensor in [*model.parameters(), *model.buffers()])


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_agrees_with_transformers_in_half_precision(tmp_path, make, dtype):
    reference = make(tmp_path, dtype=dtype)
    exact = reference_logits(reference, PROMPT)
    theirs = (reference_logits(reference.to(dtype), PROMPT).float() - exact).abs().mean()
    ours = (full_logits(load_model(tmp_path, dtype=dtype), PROMPT).float() - exact).abs().mean()
    assert ours < 1.5 * theirs


def test_auto_dtype(tmp_path):
    for stored, loaded in ((torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)):
        tiny_llama(tmp_path, dtype=stored)
        assert load_model(tmp_path).dtype == loaded
        edit_json(tmp_path / "config.json", dtype=None)
        assert load_model(tmp_path, dtype="auto").dtype == loaded
    assert load_model(tmp_path, dtype="float16").dtype == torch.float16
    with pytest.raises(ValueError, match="dtype 'int8' is not supported\nChoose one of: auto, float16"):
        load_model(tmp_path, dtype="int8")


def test_tied_weights_share_storage(tmp_path):
    tiny_llama(tmp_path / "tied", tied=True)
    tiny_llama(tmp_path / "untied", tied=False)
    for name, shared in (("tied", True), ("untied", False)):
        model = load_model(tmp_path / name)
        pointers = {table.weight.untyped_storage().data_ptr() for table in (model.head, model.embedding.tokens)}
        assert (len(pointers) == 1) is shared


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_taps_are_the_residual_stream_entering_a_layer(tmp_path, make):
    reference = make(tmp_path, layers=3)
    model = load_model(tmp_path)
    entering = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, arguments: entering.append(arguments[1].clone()))
    full_logits(model, PROMPT)
    with torch.inference_mode():
        states = reference(input_ids=torch.tensor([PROMPT]), output_hidden_states=True).hidden_states
        ids, positions = torch.tensor(PROMPT), torch.arange(len(PROMPT))
        _, features = model(ids, positions, PassContext(attend=dense_attend(model), taps=(2, 0, 1)))
        _, last = model(ids, positions, PassContext(attend=dense_attend(model), taps=(3,)))
        assert model(ids, positions, PassContext(attend=dense_attend(model)))[1] is None
    assert torch.equal(features, torch.cat([entering[2], entering[0], entering[1]], dim=-1))
    torch.testing.assert_close(features[:, :32], states[2][0], atol=2e-4, rtol=0)
    assert last.shape == (len(PROMPT), 32)


def test_config_reads_every_end_of_sequence_token(tmp_path):
    tiny_llama(tmp_path)
    config = load_config(tmp_path)
    assert (config.family, config.vocab_size, config.hidden_size, config.num_layers) == ("llama", 320, 32, 2)
    assert (config.eos_token_ids, config.bos_token_id, config.tied) == ({1}, 0, False)
    edit_json(tmp_path / "generation_config.json", eos_token_id=[7, 9, 5000, -1])
    assert load_config(tmp_path).eos_token_ids == {1, 7, 9}
    (tmp_path / "generation_config.json").unlink()
    edit_json(tmp_path / "config.json", eos_token_id=None)
    assert load_config(tmp_path).eos_token_ids == frozenset()


@pytest.mark.parametrize("transposed", [False, True])
def test_packed_linear_is_its_parts_side_by_side(transposed):
    weights, biases = [torch.randn(size, 8) for size in (4, 6, 2)], [torch.randn(size) for size in (4, 6, 2)]
    x = torch.randn(3, 8)
    packed = Linear.from_parts([w.t() for w in weights] if transposed else weights, biases, transposed=transposed)
    expected = [torch.nn.functional.linear(x, w, b) for w, b in zip(weights, biases, strict=True)]
    torch.testing.assert_close(packed(x), torch.cat(expected, dim=-1))
