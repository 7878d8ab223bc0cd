"""Every elementwise activation that transformers names, in every family and under every key, as transformers has it."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers.activations import ACT2FN

from paceline import LLM, SamplingParams
from paceline.core.errors import ConfigError
from paceline.kernels.native import gate, library
from paceline.layers.mlp import activations
from paceline.models import load_model
from paceline.runner import Choice, resolve_impl
from tests.support.checkpoints import full_logits, save_random, tiny_gpt2
from tests.support.native import needs_library
from tests.support.zoo import assert_continues, random_tokens, reference_logits, tiny

WITH_WEIGHTS = {"prelu", "xielu"}
KEYS = {
    "llama": "hidden_act",
    "mistral": "hidden_act",
    "qwen2": "hidden_act",
    "qwen3": "hidden_act",
    "gemma2": "hidden_activation",
    "gemma3_text": "hidden_activation",
    "phi3": "hidden_act",
    "gpt_neox": "hidden_act",
    "opt": "activation_function",
}
NATIVE = sorted(set(activations) & set(gate.activations))
IN_TORCH = sorted(set(activations) - set(gate.activations))


def test_all_of_transformers_that_have_no_weights():
    assert set(activations) == set(ACT2FN) - WITH_WEIGHTS
    assert set(gate.activations) <= set(activations)
    assert IN_TORCH, "nothing is left to show what happens without a native form"


@pytest.mark.parametrize("name", list(activations))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_functions_are_those_of_transformers(name, dtype):
    x = torch.cat((torch.linspace(-30, 30, 1201), torch.tensor([0.0, -1e4, 1e4, 1e-30, -1e-3]))).to(dtype)
    torch.testing.assert_close(activations[name](x), ACT2FN[name](x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", list(activations))
@pytest.mark.parametrize("family", KEYS)
def test_every_family_has_every_activation(tmp_path, family, name):
    reference = tiny(tmp_path, family, **{KEYS[family]: name})
    tokens = random_tokens(24)
    expected = reference_logits(reference, tokens)
    found = full_logits(load_model(tmp_path), tokens)
    torch.testing.assert_close(found, expected, atol=2e-4 * max(1.0, float(expected.abs().max())), rtol=0)


@pytest.mark.parametrize("name", list(activations))
def test_gpt2_has_every_activation(tmp_path, name):
    model = tiny_gpt2(tmp_path, vocab_size=61)
    model.config.activation_function = name
    reference = save_random(type(model), model.config, tmp_path)
    tokens = random_tokens(24)
    torch.testing.assert_close(
        full_logits(load_model(tmp_path), tokens), reference_logits(reference, tokens), atol=5e-4, rtol=0
    )


@pytest.mark.parametrize("name", list(activations))
@pytest.mark.parametrize("family", ["gpt_neox", "qwen3"])
def test_the_engine_writes_with_every_activation(tmp_path, caplog, family, name):
    """With a native form or without: the text is the reference's, and what is slower for want of one is told."""
    caplog.set_level(logging.WARNING, logger="paceline")
    reference = tiny(tmp_path, family, **{KEYS[family]: name}, initializer_range=0.3, seed=4)
    assert_continues(reference, load_model(tmp_path), random_tokens(12), 16)
    assert (f"no form of the activation {name};" in caplog.text) is (name in IN_TORCH and library.level() is not None)


@needs_library
@pytest.mark.parametrize("name", IN_TORCH)
def test_native_alone_is_refused_with_the_reason(tmp_path, name):
    tiny(tmp_path, "llama", hidden_act=name)
    model, device = load_model(tmp_path), torch.device("cpu")
    assert resolve_impl(Choice(), model, device) == "torch"
    with pytest.raises(ConfigError, match=f'it has no form of the activation {name}\nSet model_impl to "auto"'):
        resolve_impl(Choice(model_impl="native"), model, device)


@needs_library
@pytest.mark.parametrize("name", NATIVE)
def test_native_where_there_is_a_form(tmp_path, name):
    tiny(tmp_path, "llama", hidden_act=name)
    assert resolve_impl(Choice(), load_model(tmp_path), torch.device("cpu")) == "native"


@needs_library
@pytest.mark.parametrize(("target", "draft"), [("mish", "silu"), ("silu", "mish"), ("relu2", "quick_gelu")])
def test_drafting_changes_no_text_where_only_one_model_has_a_native_form(tmp_path, target, draft):
    for name, activation in (("target", target), ("draft", draft)):
        tiny(tmp_path / name, "llama", hidden_act=activation, dtype=torch.bfloat16)
    speculative = {"method": "draft_model", "model": str(tmp_path / "draft"), "num_speculative_tokens": 3}
    llm = LLM(tmp_path / "target", speculative_config=speculative, max_model_len=64)
    assert llm.engine.runner.model.dtype == (torch.float32 if target in IN_TORCH else torch.bfloat16)
    for temperature in (0.0, 0.9):
        params = SamplingParams(max_tokens=24, temperature=temperature, seed=3, ignore_eos=True, detokenize=False)
        texts = [
            llm.generate([random_tokens(9)], params, speculate=speculate)[0].outputs[0].token_ids
            for speculate in (True, False)
        ]
        assert texts[0] == texts[1]
