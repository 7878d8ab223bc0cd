"""Makes a target and drafts of other tokenizers: a twin with other ids, another training, another kind, a short one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models

from paceline.core.config import EngineConfig, SpeculativeConfig
from paceline.engine.build import build_engine
from paceline.engine.engine import Engine
from paceline.text import Tokenizer
from paceline.training.data import ChatFormat
from paceline.training.tokenizer import save_tokenizer, train_tokenizer
from tests.support.checkpoints import edit_json, tiny_llama, tiny_tokenizer
from tests.support.tokenizers import byte_fallback
from tests.support.vocabularies import renumbered
from tests.support.zoo import tiny

SIZE = 300
"""Of the target's vocabulary; its tokenizer knows the first 290 ids."""
OTHER_TEXTS = ["the cat sat on the mat and the dog ate the cat", "one two three four five", "naïve 東京"]
DRAFTS = ("twin", "other", "pieces")


def make(root: Path) -> Path:
    tiny_llama(root / "target", vocab_size=SIZE)
    tiny_tokenizer(root / "target", vocab_size=290)
    renumbered(root / "target", root / "twin")
    tiny_llama(root / "other", vocab_size=281, seed=4)
    chat = ChatFormat()
    save_tokenizer(train_tokenizer(OTHER_TEXTS, vocab_size=280, chat=chat), root / "other", chat=chat, max_length=256)
    _pieces(root / "pieces")
    renumbered(root / "target", root / "short", seed=1)
    edit_json(root / "short" / "config.json", max_position_embeddings=24)
    _words(root / "words")
    tiny(root / "window", "mistral", vocab_size=280, sliding_window=6)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(root / "other" / file, root / "window" / file)
    return root


def _words(directory: Path) -> None:
    """A tokenizer that knows a few digits, has no token for what it does not know, and raises on it."""
    words = {"<s>": 0, "1": 1, "2": 2, "11": 3, "22": 4, " ": 5}
    backend = tokenizers.Tokenizer(models.Unigram([(word, -1.0 - number) for word, number in words.items()]))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(["<s>"])
    tiny_llama(directory, vocab_size=len(words), seed=6)
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))


def _pieces(directory: Path) -> None:
    backend = byte_fallback().backend
    tiny_llama(directory, vocab_size=backend.get_vocab_size(), seed=5)
    backend.save(str(directory / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def engine_of(
    root: Path, method: str | None, draft: str = "twin", *, target: str = "target", depth: int = 3, **options: Any
) -> Engine:
    verifier = options.pop("verifier", "match")
    speculation = None
    if method is not None:
        model = str(root / draft)
        speculation = SpeculativeConfig(method=method, model=model, num_speculative_tokens=depth, verifier=verifier)
    options = {"max_num_seqs": 8, "dtype": "float64", "model_impl": "torch"} | options
    return build_engine(root / target, EngineConfig.of(device="cpu", speculative=speculation, **options))


def tokenizer_of(root: Path, name: str = "target") -> Tokenizer:
    return Tokenizer.load(root / name)


def check_own_pages(engine: Engine, _step: int = 0) -> None:
    """No page of the draft's is lost, and only running requests hold some."""
    assert engine.proposer is not None
    own = engine.proposer.tools.own
    assert own is not None
    own.cache.check()
    holding = {seat for group in own.cache.groups for seat in group.num_pages.nonzero()[0].tolist()}
    assert holding <= {request.seat for request in engine.scheduler.running}


def none_left(engine: Engine) -> None:
    check_own_pages(engine)
    assert engine.proposer is not None
    own = engine.proposer.tools.own
    assert own is not None
    assert own.cache.counts().referenced == 0
    counters = engine.proposer.counters
    assert counters.num_failures == counters.num_rejected_drafts == 0
    assert not counters.disabled


def random_ids(seed: int, count: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(SIZE, (count,), generator=generator).tolist())
