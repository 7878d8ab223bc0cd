"""The helpers that other tests build on give what they promise."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerFast

from paceline.models import load_model
from tests.support.checkpoints import full_logits, greedy, perturb, tiny_llama, tiny_tokenizer

PROMPT = [0, 17, 250, 3, 99, 99, 4, 201, 64, 5]


def test_tokenizer_has_special_tokens_and_a_chat_template(tmp_path):
    tiny_tokenizer(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert len(tokenizer) == 320
    specials = ["<|bos|>", "<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
    assert tokenizer.convert_tokens_to_ids(specials) == [0, 1, 2, 3, 4, 5]
    assert tokenizer.decode(tokenizer.encode("naïve 12 🙂")) == "naïve 12 🙂"
    chat = [{"role": "user", "content": " Hi "}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|bos|><|user|>Hi<|end|><|assistant|>"
    )


def test_the_same_seed_makes_the_same_checkpoint(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        tiny_llama(tmp_path / name, seed=seed)
    first, same, other = (full_logits(load_model(tmp_path / name), PROMPT) for name in "abc")
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_perturbed_copy_is_sometimes_right(tmp_path):
    tiny_llama(tmp_path / "target")
    perturb(tmp_path / "target", tmp_path / "draft", 0.05)
    target, draft = load_model(tmp_path / "target"), load_model(tmp_path / "draft")
    text = PROMPT + greedy(target, PROMPT, 20)
    agree = full_logits(target, text).argmax(-1) == full_logits(draft, text).argmax(-1)
    assert 0 < agree.sum() < len(text)
