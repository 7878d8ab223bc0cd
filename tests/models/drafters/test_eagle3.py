"""EAGLE-3 modules of every layout and flag compute what the paper says; those that do not fit are refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from paceline.core.errors import CheckpointError, ConfigError
from paceline.core.layer import PassContext
from paceline.models import Quantization, load_model, outline_model
from paceline.models.drafters import DraftModule, load_draft_module, outline_draft_module
from tests.draft_checkpoints import tiny_eagle3
from tests.models.drafters.reference import double, eagle3, eagle3_features
from tests.support.checkpoints import dense_attend, edit_json, tiny_llama
from tests.support.zoo import random_tokens

VOCAB = 61
LENGTH = 23
LAYERS = 8
VARIANTS = {
    "plain": {},
    "few tokens": {"draft_vocab_size": 24},
    "taps": {"taps": (1, 4, 8)},
    "residual": {"norm_before_residual": True},
    "norm before fc": {"norm_before_fc": True},
    "3.1": {"fc_norm": True, "norm_output": True},
    "two layers": {"layers": 2, "draft_vocab_size": 30},
    "biased": {"biased": True},
    "head norm": {"head_norm": True, "head_dim": 16},
    "prefix": {"prefix": "model.", "draft_vocab_size": 24},
    "half": {"dtype": torch.bfloat16},
}


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    directory = tmp_path_factory.mktemp("target")
    tiny_llama(directory, vocab_size=VOCAB, layers=LAYERS, hidden=32, max_positions=96)
    return load_model(directory, dtype=torch.float64)


def target_taps(target, tokens, taps):
    context = PassContext(attend=dense_attend(target), taps=taps)
    return target(torch.tensor(tokens), torch.arange(len(tokens)), context)[1]


def module_pass(module, tokens, inputs, first=1):
    """(logits, before the last norm, hidden) of the tokens at positions from ``first``."""
    context = PassContext(attend=dense_attend(module), taps=(module.config.num_layers,), inputs=inputs)
    with torch.inference_mode():
        hidden, stream = module(torch.tensor(tokens), torch.arange(first, first + len(tokens)), context)
        return module.logits(hidden), stream, hidden


def compare(module, target, weights, **flags):
    """Teacher-forced pairs, then rows that read what the module itself computed."""
    weights = double(weights)
    tokens = random_tokens(LENGTH, seed=3)
    tapped = target_taps(target, tokens, module.taps)
    fused = module.fuse(tapped)
    expected_features = eagle3_features(weights, *tapped.chunk(3, -1))
    assert (fused - expected_features).abs().max() < 1e-9
    found = module_pass(module, tokens[1:], fused[:-1])
    embedded = weights.get("embed_tokens.weight", target.embedding.tokens.weight)[torch.tensor(tokens)]
    positions = torch.arange(1, LENGTH)
    expected = eagle3(weights, embedded[1:], expected_features[:-1], positions, vocab_size=VOCAB, **flags)
    recurrent = found[2] if module.norm_output else found[1]
    again = module_pass(module, tokens[2:], recurrent[:-1], first=2)
    wanted = expected[2] if module.norm_output else expected[1]
    expected_again = eagle3(weights, embedded[2:], wanted[:-1], positions[1:], vocab_size=VOCAB, **flags)
    for ours, theirs in zip((*found, *again), (*expected, *expected_again), strict=True):
        assert ours.shape == theirs.shape
        assert torch.equal(ours.isinf(), theirs.isinf())
        assert (ours - theirs).masked_fill(theirs.isinf(), 0).abs().max() < 1e-9


@pytest.mark.parametrize("speculators", [False, True], ids=["safeailab", "speculators"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_the_paper(variant, speculators, target, tmp_path):
    options = VARIANTS[variant]
    weights = tiny_eagle3(tmp_path, target.config, speculators=speculators, **options)
    module = load_draft_module(tmp_path, target)
    assert isinstance(module, DraftModule)
    assert module.taps == options.get("taps", (2, 4, 5))
    assert module.norm_output == options.get("norm_output", False)
    assert module.feature_size == module.input_size == 32
    compare(module, target, weights, norm_before_residual=options.get("norm_before_residual", False))


def test_the_table_is_the_targets(target, tmp_path):
    copied = target.embedding.tokens.weight.float()
    for embedding in (None, copied, copied.bfloat16()):
        tiny_eagle3(tmp_path, target.config, embedding=embedding)
        assert load_draft_module(tmp_path, target).embedding.tokens is target.embedding.tokens


def test_a_table_of_its_own_counts(target, tmp_path):
    own = torch.randn(VOCAB, 32, generator=torch.Generator().manual_seed(9))
    weights = tiny_eagle3(tmp_path, target.config, embedding=own)
    module = load_draft_module(tmp_path, target)
    assert torch.equal(module.embedding.tokens.weight, own.double())
    compare(module, target, weights)


def test_positions_reach_as_far_as_the_targets(target, tmp_path):
    tiny_eagle3(tmp_path, target.config)
    assert load_draft_module(tmp_path, target).config.max_position_embeddings == 96


def test_without_a_head_of_its_own_it_uses_the_targets(target, tmp_path):
    weights = tiny_eagle3(tmp_path, target.config)
    edit(tmp_path, "lm_head.weight", None)
    edit_json(tmp_path / "config.json", draft_vocab_size=None)
    module = load_draft_module(tmp_path, target)
    assert module.head is target.head
    compare(module, target, {**weights, "lm_head.weight": target.head.weight})


def test_taps_are_in_the_order_of_layers(target, tmp_path):
    tiny_eagle3(tmp_path, target.config, taps=(6, 1, 3), speculators=True)
    assert load_draft_module(tmp_path, target).taps == (1, 3, 6)


def edit(directory, name, tensor):
    tensors = {**load_file(directory / "model.safetensors"), name: tensor}
    save_file({key: value for key, value in tensors.items() if value is not None}, directory / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "tensor", "match"),
    [
        ("fc.weight", None, "'fc.weight' is missing"),
        ("midlayer.mlp.up_proj.weight", None, "up_proj.weight' is missing"),
        ("extra.weight", torch.zeros(3), "unexpected tensor 'extra.weight'"),
        ("fc.bias", torch.zeros(32), "unexpected tensor 'fc.bias'"),
        ("fc.weight", torch.zeros(32, 64), r"has shape \[32, 64\], config.json implies \[32, 96\]"),
        ("embed_tokens.weight", torch.zeros(70, 32), "embed_tokens has 70 tokens, and the target 61"),
        ("d2t", None, "lm_head has 24 rows of 61 tokens, and there is no d2t"),
        ("d2t", torch.zeros(20, dtype=torch.int64), r"d2t is torch.int64\[20\], and lm_head has 24 rows"),
        ("d2t", torch.full((24,), 50), "d2t leads to token 61, and the target has 61"),
        ("d2t", -torch.arange(24), "d2t leads to token 0 twice"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(name, tensor, match, target, tmp_path):
    tiny_eagle3(tmp_path, target.config, draft_vocab_size=24)
    edit(tmp_path, name, tensor)
    refused(tmp_path, target, match)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"vocab_size": 100}, "vocab_size is 100, and the target has 61 tokens"),
        ({"hidden_size": 64}, "hidden_size is 64, and the target's embedding table, which it shares, has 32"),
        ({"target_hidden_size": 48}, "made for a target of hidden_size 48, and the target has 32"),
        ({"eagle_aux_hidden_state_layer_ids": [2, 4, 9]}, "reads layer 9 of the target, which has 8"),
        ({"eagle_aux_hidden_state_layer_ids": [2, 2, 5]}, r"layer_ids is \[2, 2, 5\]"),
        ({"norm_before_fc": True, "fc_norm": True}, "norm_before_fc and fc_norm are both set"),
        ({"norm_before_fc": True}, "'input_norm.weight' is missing"),
        ({"norm_output": "yes"}, "norm_output must be true or false"),
        ({"eagle_config": {"use_aux_hidden_state": False}}, "use_aux_hidden_state is false"),
        ({"num_attention_heads": 0}, "num_attention_heads must be an integer"),
    ],
)
def test_configs_that_do_not_fit_are_refused(config, match, target, tmp_path):
    tiny_eagle3(tmp_path, target.config)
    edit_json(tmp_path / "config.json", **config)
    refused(tmp_path, target, match)


def test_a_target_of_few_layers_needs_taps_by_name(tmp_path):
    tiny_llama(tmp_path / "target", vocab_size=VOCAB, layers=2)
    small = load_model(tmp_path / "target")
    tiny_eagle3(tmp_path, small.config)
    refused(tmp_path, small, "of a target of 2 layers are not three")
    tiny_eagle3(tmp_path, small.config, taps=(0, 1, 2))
    assert load_draft_module(tmp_path, small).taps == (0, 1, 2)


def refused(directory, target, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        load_draft_module(directory, target)
    assert str(directory) in str(caught.value)


def test_pickles_are_refused_with_the_way_to_convert_them(target, tmp_path):
    tiny_eagle3(tmp_path, target.config)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    refused(tmp_path, target, r"only as pickles \(pytorch_model.bin\), .*\nConvert them once, .*weights_only=True")


def test_what_is_no_draft_module_is_refused(target, tmp_path):
    tiny_llama(tmp_path, vocab_size=VOCAB)
    refused(tmp_path, target, "is no draft module that is known, whose tensors begin with .*\nGive .* eagle3")


def test_dtype_and_device_are_the_targets(target, tmp_path):
    tiny_eagle3(tmp_path, target.config)
    assert load_draft_module(tmp_path, target, dtype="float64", device="cpu").dtype == torch.float64
    with pytest.raises(ConfigError, match=r"dtype of the draft module is float32, .* has float64\nSet it to auto"):
        load_draft_module(tmp_path, target, dtype="float32")
    with pytest.raises(ConfigError, match="to lie on meta"):
        load_draft_module(tmp_path, target, device="meta")


def test_it_is_quantised_while_it_is_read(tmp_path):
    tiny_llama(tmp_path / "target", vocab_size=VOCAB, layers=LAYERS)
    target = load_model(tmp_path / "target")
    tiny_eagle3(tmp_path, target.config, draft_vocab_size=24)
    whole = load_draft_module(tmp_path, target)
    quantised = load_draft_module(tmp_path, target, quantization=Quantization("int8"))
    assert quantised.fuse.linear.quantised
    assert quantised.blocks[0].attention.qkv.quantised
    assert not target.head.quantised
    tapped = target_taps(target, random_tokens(6), whole.taps)
    exact, near = whole.fuse(tapped), quantised.fuse(tapped)
    assert 0 < (exact - near).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("weights", [True, False], ids=["weights", "config alone"])
@pytest.mark.parametrize("speculators", [False, True], ids=["safeailab", "speculators"])
def test_an_outline_has_the_same_sizes_and_no_memory(speculators, weights, tmp_path):
    tiny_llama(tmp_path / "target", vocab_size=VOCAB, layers=LAYERS)
    target = load_model(tmp_path / "target")
    tiny_eagle3(tmp_path / "draft", target.config, draft_vocab_size=24, speculators=speculators, fc_norm=True)
    loaded = load_draft_module(tmp_path / "draft", target)
    if not weights:
        (tmp_path / "draft/model.safetensors").unlink()
    outline = outline_draft_module(tmp_path / "draft", outline_model(tmp_path / "target"))
    assert all(parameter.is_meta for parameter in outline.parameters())
    assert {name: (p.shape, p.dtype) for name, p in outline.named_parameters()} == {
        name: (p.shape, p.dtype) for name, p in loaded.named_parameters()
    }
