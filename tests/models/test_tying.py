"""Whether the output matrix is the embedding table is what a checkpoint's tensors say; transformers is the oracle."""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from paceline import LLM, CheckpointError, SamplingParams
from paceline.core.config import EngineConfig
from paceline.engine.fit import fit
from paceline.models import Quantization, load_model
from paceline.models.compressed import to_words
from paceline.models.publishing import quantise_checkpoint
from tests.support.checkpoints import edit_json, full_logits, tiny_gpt2, tiny_llama
from tests.support.zoo import random_tokens, reference_logits, tiny, tiny_gemma3_with_vision

TIED = {"tie_word_embeddings": True}
FAMILIES = {
    "llama": lambda path: tiny(path, "llama", **TIED),
    "qwen2": lambda path: tiny(path, "qwen2", **TIED),
    "gemma2": lambda path: tiny(path, "gemma2"),
    "gemma3 with vision": tiny_gemma3_with_vision,
    "phi3": lambda path: tiny(path, "phi3", **TIED),
    "gpt_neox": lambda path: tiny(path, "gpt_neox", **TIED),
    "gpt2": lambda path: tiny_gpt2(path, vocab_size=61),
    "opt": lambda path: tiny(path, "opt", word_embed_proj_dim=20),
}
TABLES = ("embed_tokens.weight", "wte.weight", "embed_in.weight")


def table_of(tensors):
    return next(name for name in tensors if name.endswith(TABLES))


def change(path, edit):
    """Saves what ``edit`` makes of the tensors by name."""
    tensors = load_file(path / "model.safetensors")
    save_file(edit(tensors), path / "model.safetensors", metadata={"format": "pt"})


def noisy(tensor):
    return tensor + torch.randn(tensor.shape, generator=torch.Generator().manual_seed(5)) * tensor.std()


def head_name(path):
    """As transformers calls the matrix, whose files rename it where it is stored at all."""
    return "embed_out.weight" if "gpt_neox" in (path / "config.json").read_text() else "lm_head.weight"


def assert_as_transformers(path, *, atol=2e-4):
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    model, tokens = load_model(path), random_tokens(24)
    torch.testing.assert_close(full_logits(model, tokens), reference_logits(theirs, tokens), atol=atol, rtol=0)
    return model


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_a_different_head_of_a_tied_pair_is_used_and_told(tmp_path, caplog, make):
    make(tmp_path)
    tied, head = full_logits(load_model(tmp_path), random_tokens(24)), head_name(tmp_path)
    change(tmp_path, lambda tensors: tensors | {head: noisy(tensors[table_of(tensors)])})
    caplog.clear()
    model = assert_as_transformers(tmp_path)
    assert (full_logits(model, random_tokens(24)) - tied).abs().max() > 0.1
    assert not model.config.tied
    told = [record.getMessage() for record in caplog.records if record.name.startswith("paceline")]
    assert len(told) == 1
    assert f"'{head}' differs from" in told[0]
    assert "\nSet tie_word_embeddings to false" in told[0]


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("alone", [True, False], ids=["only the head", "both"])
def test_a_tied_pair_is_one_wherever_it_is_stored(tmp_path, caplog, make, alone):
    make(tmp_path)
    expected, head = full_logits(load_model(tmp_path), random_tokens(24)), head_name(tmp_path)

    def edit(tensors):
        table = table_of(tensors)
        kept = {name: tensor for name, tensor in tensors.items() if not (alone and name == table)}
        return kept | {head: tensors[table].clone()}

    change(tmp_path, edit)
    model = assert_as_transformers(tmp_path)
    assert torch.equal(full_logits(model, random_tokens(24)), expected)
    assert model.head.weight is model.embedding.tokens.weight
    assert not [record for record in caplog.records if record.name.startswith("paceline")]


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_a_copy_in_a_coarser_type_is_a_copy(tmp_path, stored):
    tiny_llama(tmp_path, tied=True)
    change(tmp_path, lambda tensors: tensors | {"lm_head.weight": tensors[table_of(tensors)].to(stored)})
    assert load_model(tmp_path).config.tied


def test_one_row_that_differs_is_found_wherever_it_lies(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("paceline.models.tying.COMPARED_BYTES", 1000)  # several pieces of a few rows
    tiny_llama(tmp_path, tied=True)
    for row in (0, 100, 319):

        def edit(tensors, row=row):
            head = tensors[table_of(tensors)].clone()
            head[row, 3] += 0.5
            return tensors | {"lm_head.weight": head}

        change(tmp_path, edit)
        assert not assert_as_transformers(tmp_path).config.tied
    assert caplog.text.count("config.json ties the output matrix") == 3


def test_a_head_of_another_shape_is_refused(tmp_path):
    tiny_llama(tmp_path, tied=True)
    change(tmp_path, lambda tensors: tensors | {"lm_head.weight": torch.ones(321, 32)})
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' has shape \[321, 32\]"):
        load_model(tmp_path)


def test_neither_of_a_tied_pair_is_refused(tmp_path):
    tiny_llama(tmp_path, tied=True)
    change(tmp_path, lambda tensors: {name: t for name, t in tensors.items() if name != table_of(tensors)})
    with pytest.raises(CheckpointError, match=r"'model.embed_tokens.weight' is missing"):
        load_model(tmp_path)


GROUP = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}}
ROWS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


def quantised_head(path, *, packed):
    """Integers that are far from the table, so that neither the table nor a new rounding of it can stand for them."""
    steps = torch.randint(-127, 128, (320, 32), generator=torch.Generator().manual_seed(6)).to(torch.int8)
    scale = torch.rand(320, 1, generator=torch.Generator().manual_seed(7)) * 0.01 + 0.001
    stored = {"weight_packed": to_words(steps, 8), "weight_shape": torch.tensor([320, 32])}
    stored = stored if packed else {"weight": steps}
    head = {f"lm_head.{name}": tensor for name, tensor in (stored | {"weight_scale": scale}).items()}
    change(path, lambda tensors: tensors | head)
    method = {"quant_method": "compressed-tensors", "format": "pack-quantized" if packed else "int-quantized"}
    group = GROUP | {"input_activations": None if packed else ROWS}
    edit_json(path / "config.json", quantization_config=method | {"config_groups": {"group_0": group}})
    return steps, scale


@pytest.mark.parametrize("packed", [True, False], ids=["pack-quantized", "int-quantized"])
def test_a_quantised_head_beside_the_full_table_is_used_as_it_is(tmp_path, caplog, packed):
    tiny_llama(tmp_path, tied=True)
    steps, scale = quantised_head(tmp_path, packed=packed)
    model = load_model(tmp_path)
    assert model.embedding.tokens.weight.dtype == torch.float32
    model.head.dequantise(torch.device("cpu"))
    assert torch.equal(model.head.weight, steps.float() * scale)
    assert "config.json ties" not in caplog.text


@pytest.mark.parametrize("packed", [True, False], ids=["pack-quantized", "int-quantized"])
def test_of_a_quantised_head_alone_the_table_is_made(tmp_path, packed):
    tiny_llama(tmp_path, tied=True)
    steps, scale = quantised_head(tmp_path, packed=packed)
    change(tmp_path, lambda tensors: {name: t for name, t in tensors.items() if name != table_of(tensors)})
    model = load_model(tmp_path)
    assert torch.equal(model.embedding.tokens.weight, steps.float() * scale)
    model.head.dequantise(torch.device("cpu"))
    assert torch.equal(model.head.weight, steps.float() * scale)


def test_a_grouped_head_alone_makes_the_table(tmp_path):
    tiny_llama(tmp_path / "source", tied=True, hidden=64, intermediate=128)
    steps = torch.randint(-8, 8, (320, 64), generator=torch.Generator().manual_seed(6)).to(torch.int8)
    scale = torch.rand(320, 2, generator=torch.Generator().manual_seed(7)) * 0.01 + 0.001
    head = {"weight_packed": to_words(steps, 4), "weight_shape": torch.tensor([320, 64]), "weight_scale": scale}
    source = tmp_path / "source"
    change(source, lambda tensors: {name: t for name, t in tensors.items() if name != table_of(tensors)})
    change(source, lambda tensors: tensors | {f"lm_head.{name}": tensor for name, tensor in head.items()})
    weights = GROUP["weights"] | {"num_bits": 4, "strategy": "group", "group_size": 32}
    method = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    edit_json(
        source / "config.json", quantization_config=method | {"config_groups": {"g": GROUP | {"weights": weights}}}
    )
    table = load_model(source).embedding.tokens.weight
    assert torch.equal(table, steps.float() * scale.repeat_interleave(32, 1))


def test_an_untied_model_without_its_table_is_refused(tmp_path):
    tiny_llama(tmp_path, tied=True)
    quantised_head(tmp_path, packed=True)
    change(tmp_path, lambda tensors: {name: t for name, t in tensors.items() if name != table_of(tensors)})
    edit_json(tmp_path / "config.json", tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"'model.embed_tokens.weight' is missing"):
        load_model(tmp_path)


def test_what_fits_counts_a_head_that_is_not_the_table(tmp_path):
    tiny_llama(tmp_path, tied=True)
    config = EngineConfig(dtype="float32", model_impl="torch")
    tied = fit(tmp_path, config).weight_bytes["target"]
    change(tmp_path, lambda tensors: tensors | {"lm_head.weight": tensors[table_of(tensors)].clone()})
    assert fit(tmp_path, config).weight_bytes["target"] == tied
    change(tmp_path, lambda tensors: tensors | {"lm_head.weight": noisy(tensors[table_of(tensors)])})
    assert fit(tmp_path, config).weight_bytes["target"] == tied + 320 * 32 * 4
    (tmp_path / "model.safetensors").unlink()  # then config.json is all there is
    assert fit(tmp_path, config).weight_bytes["target"] == tied


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("only_head", [True, False])
def test_a_quantised_copy_has_the_same_pair(tmp_path, scheme, only_head, caplog):
    caplog.set_level(logging.ERROR)
    tiny_llama(tmp_path / "source", tied=True, hidden=64, intermediate=128)

    def edit(tensors):
        table = tensors.pop(table_of(tensors)) if only_head else tensors[table_of(tensors)]
        return tensors | {"lm_head.weight": table if only_head else noisy(table)}

    change(tmp_path / "source", edit)
    quantise_checkpoint(tmp_path / "source", tmp_path / "out", Quantization(scheme))
    made = load_model(tmp_path / "source", quantization=Quantization(scheme))
    tokens = random_tokens(12)
    assert torch.equal(full_logits(made, tokens), full_logits(load_model(tmp_path / "out"), tokens))
    loss = full_logits(made, tokens) - full_logits(load_model(tmp_path / "source"), tokens)
    assert loss.std() < full_logits(made, tokens).std() / 2


def test_the_engine_writes_with_the_head_that_is_stored(tmp_path):
    tiny_llama(tmp_path, tied=True, seed=2)
    change(tmp_path, lambda tensors: tensors | {"lm_head.weight": noisy(tensors[table_of(tensors)])})
    prompt = [0, *random_tokens(8)]
    params = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True, detokenize=False)
    with torch.inference_mode():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
        written = theirs.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None)
    llm = LLM(tmp_path, max_model_len=64)
    assert list(llm.generate([prompt], params)[0].outputs[0].token_ids) == written[0, len(prompt) :].tolist()
