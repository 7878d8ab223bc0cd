"""Modules that draft several tokens in one pass compute what their makers describe, each in both published layouts."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from paceline.core.errors import CheckpointError
from paceline.core.layer import PassContext
from paceline.models import load_model
from paceline.models.drafters import load_draft_module, outline_draft_module
from tests.draft_checkpoints_block import BLOCK_SIZE, DFLASH_MASK, dflash, peagle, speculators_dflash
from tests.draft_checkpoints_mtp import read_sizes
from tests.models.drafters.straight import StraightLayer, rms_norm
from tests.support.checkpoints import dense_attend, edit_json
from tests.support.zoo import random_tokens, tiny

LAYERS = 5
"""Of the target."""
COUNT = 9
"""Known tokens."""


@pytest.fixture
def target(tmp_path):
    tiny(tmp_path, "qwen3", num_hidden_layers=LAYERS)
    return load_model(tmp_path, dtype="float64")


def features_of(module, count):
    width = len(module.taps) * module.config.hidden_size
    return torch.randn(count, width, generator=torch.Generator().manual_seed(4)).double()


class Cached:
    """An attention over what earlier passes wrote; a row sees all of that, and of its own pass all rows."""

    def __init__(self, module):
        self.specs, self.keys, self.values = module.layer_specs, {}, {}

    def __call__(self, layer, q, k, v):
        kept = [torch.cat((cache[layer], rows)) if layer in cache else rows for cache, rows in self.both(k, v)]
        self.keys[layer], self.values[layer] = kept
        spec = self.specs[layer]
        key, value = (rows.repeat_interleave(spec.num_heads // spec.num_kv_heads, dim=1) for rows in kept)
        weights = (torch.einsum("qhd,khd->hqk", q, key) * spec.scale).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, value)

    def both(self, k, v):
        return (self.keys, k), (self.values, v)


def our_block(module, features, last):
    """DFlash: logits of each row of a block behind the tokens whose features these are."""
    attend, count = Cached(module), len(features)
    fused, nothing = module.fuse(features), torch.zeros(count, dtype=torch.int64)
    module.context(nothing, torch.arange(count), PassContext(attend=attend, inputs=fused))
    tokens = torch.tensor([last, *[module.block.mask_token_id] * (BLOCK_SIZE - 1)])
    hidden, _ = module(tokens, count + torch.arange(BLOCK_SIZE), PassContext(attend=attend))
    return module.logits(hidden)


def straight_block(directory, target, features, last, size=BLOCK_SIZE):
    """The same line by line, of what their files hold; over the draft's own vocabulary."""
    tensors = {name: tensor.double() for name, tensor in load_file(directory / "model.safetensors").items()}
    config = read_sizes(directory)
    config = config.get("transformer_layer_config", config)
    table = tensors.get("embed_tokens.weight", target.embedding.tokens.weight)
    head = tensors.get("lm_head.weight", target.head.weight)
    count, epsilon = len(features), config["rms_norm_eps"]
    fused = rms_norm(features @ tensors["fc.weight"].T, tensors["hidden_norm.weight"], epsilon)
    x = table[torch.tensor([last, *[DFLASH_MASK] * (size - 1)])]
    before, positions = torch.arange(count), count + torch.arange(size)
    for number in range(config["num_hidden_layers"]):
        layer = StraightLayer(tensors, f"layers.{number}.", config)
        normed = layer.norm("input_layernorm", x)
        rows = zip(layer.key_value(fused, before), layer.key_value(normed, positions), strict=True)
        key, value = (torch.cat(pair) for pair in rows)
        x = x + layer.attention(normed, positions, key, value, torch.ones(size, len(key), dtype=torch.bool))
        x = x + layer.mlp(layer.norm("post_attention_layernorm", x))
    return rms_norm(x, tensors["norm.weight"], epsilon) @ head.T


@pytest.mark.parametrize("save", [dflash, speculators_dflash])
def test_a_dflash_block_is_what_its_authors_describe(tmp_path, target, save):
    save(tmp_path / "draft", tmp_path)
    module = load_draft_module(tmp_path / "draft", target)
    # The features that leave layers 0 and 1 are those that enter 1 and 2.
    assert (module.taps, module.feature_size, module.input_size) == ((1, 2), 32, 0)
    assert (module.block.max_tokens, module.block.bidirectional, module.block.samples_first) == (4, True, False)
    features, last = features_of(module, COUNT), random_tokens(1)[0]
    with torch.inference_mode():
        found = our_block(module, features, last)
    expected = straight_block(tmp_path / "draft", target, features, last)
    if module.token_map is not None:
        assert found.isinf().sum(-1).tolist() == [61 - 40] * BLOCK_SIZE
        found = found[:, module.token_map]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert len(set(expected.argmax(-1).tolist())) > 1


def test_dflash_shares_all_but_its_layers(tmp_path, target):
    dflash(tmp_path / "draft", tmp_path)
    module = load_draft_module(tmp_path / "draft", target)
    assert module.embedding.tokens is target.embedding.tokens
    assert module.context.embedding.tokens is target.embedding.tokens
    assert module.head is target.head
    for block, writer in zip(module.blocks, module.context.blocks, strict=True):
        assert writer.attention is block.attention
    outline = outline_draft_module(tmp_path / "draft", target)
    assert [part.shape for part in outline.parameters()] == [part.shape for part in module.parameters()]


def our_parallel(module, tokens, features, depth):
    """P-EAGLE: logits of the last known token's row and of the mask rows behind it; tokens from slot 1 on."""
    inputs = torch.cat((module.fuse(features), module.mask_inputs().expand(depth - 1, -1)))
    rows = torch.cat((tokens, torch.full((depth - 1,), module.block.mask_token_id)))
    context = PassContext(attend=dense_attend(module), inputs=inputs)
    hidden, _ = module(rows, 1 + torch.arange(len(rows)), context)
    return module.logits(hidden[-depth:])[:, module.token_map]


def straight_parallel(directory, tokens, features, depth):
    tensors = {name: tensor.double() for name, tensor in load_file(directory / "model.safetensors").items()}
    config = read_sizes(directory)["transformer_layer_config"]
    epsilon = config["rms_norm_eps"]
    features = torch.cat((features, tensors["mask_hidden"][0].expand(depth - 1, -1)))
    rows = torch.cat((tokens, torch.full((depth - 1,), DFLASH_MASK)))
    taps = features.chunk(3, dim=-1)
    taps = [rms_norm(tap, tensors[f"fc_norm.{number}.weight"], epsilon) for number, tap in enumerate(taps)]
    fused = torch.cat(taps, -1) @ tensors["fc.weight"].T
    positions, sees = 1 + torch.arange(len(rows)), torch.ones(len(rows), len(rows), dtype=torch.bool).tril()
    first = StraightLayer(tensors, "layers.0.", config)
    normed = first.norm("hidden_norm", fused)
    joined = torch.cat((first.norm("input_layernorm", tensors["embed_tokens.weight"][rows]), normed), -1)
    x = normed + first.attention(joined, positions, *first.key_value(joined, positions), sees)
    x = x + first.mlp(first.norm("post_attention_layernorm", x))
    for number in range(1, config["num_hidden_layers"]):
        x = StraightLayer(tensors, f"layers.{number}.", config).forward(x, positions)
    return rms_norm(x[-depth:], tensors["norm.weight"], epsilon) @ tensors["lm_head.weight"].T


@pytest.mark.parametrize("layers", [1, 3])
def test_peagle_drafts_in_one_pass_as_its_authors_describe(tmp_path, target, layers):
    peagle(tmp_path / "draft", tmp_path, layers=layers)
    module = load_draft_module(tmp_path / "draft", target)
    assert (module.taps, module.context, module.block.max_tokens) == ((1, 2, 4), None, None)
    assert not module.block.bidirectional
    tokens, features = torch.tensor(random_tokens(COUNT)), features_of(module, COUNT)
    with torch.inference_mode():
        found = our_parallel(module, tokens, features, depth=4)
    expected = straight_parallel(tmp_path / "draft", tokens, features, depth=4)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert len(set(expected.argmax(-1).tolist())) > 1


def refused(directory, target, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        load_draft_module(directory, target)
    lines = str(caught.value).split("\n")
    assert len(lines) == 2
    assert all(lines)


DFLASH_MISFITS = [
    ({"num_target_layers": 7}, "made for a target of 7 layers, and the target has 5"),
    ({"hidden_size": 64}, "hidden_size is 64, and the target has 32"),
    ({"vocab_size": 62}, "vocab_size is 62, and the target has 61"),
    ({"dflash_config": {"target_layer_ids": [0, 1]}}, "names no mask token"),
    (
        {"dflash_config": {"mask_token_id": 61, "target_layer_ids": [0, 1]}},
        "mask_token_id is 61, and the target has 61",
    ),
    ({"dflash_config": {"mask_token_id": 1, "target_layer_ids": [0, 5]}}, r"target_layer_ids is \[0, 5\]"),
    ({"dflash_config": {"mask_token_id": 1, "target_layer_ids": [1, 0]}}, "which does not rise"),
    ({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8}, "have a sliding window"),
]


@pytest.mark.parametrize(("changes", "match"), DFLASH_MISFITS)
def test_a_dflash_that_does_not_fit_is_refused(tmp_path, target, changes, match):
    dflash(tmp_path / "draft", tmp_path, **changes)
    refused(tmp_path / "draft", target, match)


def without(directory, name):
    tensors = load_file(directory / "model.safetensors")
    del tensors[name]
    save_file(tensors, directory / "model.safetensors")


@pytest.mark.parametrize("name", ["norm.weight", "layers.1.self_attn.k_norm.weight", "layers.0.mlp.down_proj.weight"])
def test_a_missing_tensor_is_named(tmp_path, target, name):
    for save in (dflash, peagle):
        save(tmp_path / save.__name__, tmp_path)
        if name in load_file(tmp_path / save.__name__ / "model.safetensors"):
            without(tmp_path / save.__name__, name)
            refused(tmp_path / save.__name__, target, f"tensor '{name}' is missing")


def test_a_peagle_without_its_mask_token_is_refused(tmp_path, target):
    peagle(tmp_path / "draft", tmp_path)
    edit_json(tmp_path / "draft" / "config.json", mask_token_id=None)
    refused(tmp_path / "draft", target, "config.json names no mask token\nGive mask_token_id")


def test_the_default_taps_are_those_of_the_authors(tmp_path, target):
    """Evenly from layer 1 to the third last; of one layer the middle."""
    for layers, taps in ((1, (3,)), (2, (2, 3))):
        dflash(tmp_path / "draft", tmp_path, layers=layers, dflash_config={"mask_token_id": DFLASH_MASK})
        assert load_draft_module(tmp_path / "draft", target).taps == taps
