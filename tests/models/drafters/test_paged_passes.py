"""Draft modules over K/V pages, in torch and natively, give what they give of whole sequences without a cache."""

from __future__ import annotations

import pytest
import torch

from paceline.core.layer import PassContext
from paceline.models import Quantization, load_model
from paceline.models.drafters import load_draft_module
from paceline.runner.native import obstacle
from tests.draft_checkpoints_block import BLOCK_SIZE, dflash, peagle
from tests.draft_checkpoints_mtp import own_mtp, tiny_mimo
from tests.models.drafters.paged import ALONE, Paged
from tests.models.drafters.test_block_modules import our_block, our_parallel
from tests.support.checkpoints import dense_attend
from tests.support.native import needs_library
from tests.support.zoo import random_tokens, tiny

COUNT = 9
IMPLS = ["torch", pytest.param("native", marks=needs_library)]


def features_of(module, count):
    width = len(module.taps) * module.config.hidden_size
    return torch.randn(count, width, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("save", [tiny_mimo, own_mtp])
def test_an_mtp_module(tmp_path, save, impl):
    save(tmp_path)
    target = load_model(tmp_path, dtype="float32")
    module = load_draft_module(tmp_path, target)
    assert impl == "torch" or obstacle(module, torch.device("cpu")) is None
    tokens, features = random_tokens(COUNT), features_of(module, COUNT)
    inputs = module.fuse(features)
    with torch.inference_mode():
        context = PassContext(attend=dense_attend(module), inputs=inputs)
        hidden, _ = module(torch.tensor(tokens), torch.arange(1, COUNT + 1), context)
        logits = module.logits(hidden[-1:])
    paged = Paged(module, impl)
    found = paged.feed_known(module, tokens, paged.fuse(module, features))
    torch.testing.assert_close(found.hidden, hidden, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(found.logits, logits, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_dflash_block_behind_its_context(tmp_path, impl):
    """The stages that ``paceline.models.drafters.block`` asks for: features of slots 0 to N - 2, then the block."""
    tiny(tmp_path, "qwen3", num_hidden_layers=5)
    dflash(tmp_path / "draft", tmp_path)
    module = load_draft_module(tmp_path / "draft", load_model(tmp_path, dtype="float32"))
    assert impl == "torch" or obstacle(module, torch.device("cpu")) is None
    assert impl == "torch" or obstacle(module.context, torch.device("cpu")) is None
    tokens, features = random_tokens(COUNT), features_of(module, COUNT)
    with torch.inference_mode():
        expected = our_block(module, features, tokens[-1])
    paged = Paged(module, impl)
    fused = paged.fuse(module, features)
    # The request is fed what is new in two steps, as if some of it had been accepted between.
    paged.feed_known(module.context, tokens[:4], fused[:4], sampled=False, first_slot=ALONE, position_shift=-1)
    paged.feed_known(module.context, tokens, fused, sampled=False, first_slot=ALONE, position_shift=-1)
    block = [tokens[-1], *[module.block.mask_token_id] * (BLOCK_SIZE - 1)]
    found = paged.feed_block(module, COUNT + 1, block, position_shift=-1)
    torch.testing.assert_close(found.logits, expected, atol=2e-4, rtol=1e-4)
    # The rows of the block left K/V where the next known tokens will lie; these come anew.
    again = paged.feed_block(module, COUNT + 1, block, position_shift=-1)
    assert torch.equal(again.logits, found.logits)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_peagle_pass_of_known_tokens_and_masks(tmp_path, impl):
    tiny(tmp_path, "qwen3", num_hidden_layers=5)
    peagle(tmp_path / "draft", tmp_path, layers=3)
    module = load_draft_module(tmp_path / "draft", load_model(tmp_path, dtype="float32"))
    assert impl == "torch" or obstacle(module, torch.device("cpu")) is None
    tokens, features, depth = random_tokens(COUNT), features_of(module, COUNT), 4
    with torch.inference_mode():
        expected = our_parallel(module, torch.tensor(tokens), features, depth)
        masks = module.mask_inputs().expand(depth - 1, -1)
    paged = Paged(module, impl)
    found = paged.feed_with_masks(module, tokens, depth - 1, torch.cat((paged.fuse(module, features), masks)))
    torch.testing.assert_close(found.logits[:, module.token_map], expected, atol=2e-4, rtol=1e-4)


@needs_library
def test_quantised_modules(tmp_path):
    """Natively as in torch, which rounds alike; the context's matrices are the block's."""
    tiny(tmp_path, "qwen3", num_hidden_layers=5)
    dflash(tmp_path / "draft", tmp_path)
    target = load_model(tmp_path, dtype="float32")
    tokens, found = random_tokens(COUNT), {}
    for impl in ("torch", "native"):
        module = load_draft_module(tmp_path / "draft", target, quantization=Quantization("int8"))
        assert all(block.attention.qkv.quantised for block in module.context.blocks)
        paged = Paged(module, impl)
        fused = paged.fuse(module, features_of(module, COUNT))
        paged.feed_known(module.context, tokens, fused, sampled=False, first_slot=ALONE, position_shift=-1)
        block = [tokens[-1], *[module.block.mask_token_id] * (BLOCK_SIZE - 1)]
        found[impl] = paged.feed_block(module, COUNT + 1, block, position_shift=-1).hidden
    torch.testing.assert_close(found["native"], found["torch"], atol=0.05, rtol=0.05)
