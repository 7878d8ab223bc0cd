"""A tokenizer whose tokens are single letters, as tiny as the tiny models."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from paceline.text.tokenizer import Tokenizer
from tests.support.tokenizers import of

SPECIAL = ("<bos>", "<end>", "<pad>")


def _backend(vocab_size: int) -> Backend:
    words = [*SPECIAL, "?", *(chr(0x40 + number) for number in range(vocab_size - 4))]
    backend = Backend(models.WordLevel({word: number for number, word in enumerate(words)}, "?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(list(SPECIAL))
    return backend


@lru_cache
def letters(vocab_size: int = 61) -> Tokenizer:
    """The first three tokens are special."""
    return of(_backend(vocab_size), None)


def write_letters(directory: Path, vocab_size: int = 61) -> None:
    """Saves it beside a model."""
    _backend(vocab_size).save(str(directory / "tokenizer.json"))
    config = {"bos_token": "<bos>", "eos_token": "<end>", "pad_token": "<pad>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
