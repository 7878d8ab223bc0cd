"""Knows how to train a byte-level BPE, and how to write and read it as a Hugging Face tokenizer directory."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from paceline.core.errors import CheckpointError, ConfigError
from paceline.training.data import ChatFormat

FILES = ("tokenizer.json", "tokenizer_config.json")


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, chat: ChatFormat) -> Tokenizer:
    """Byte-level BPE with single digits split off, so that arithmetic keeps its columns."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = chat.special_tokens()
    if vocab_size < len(alphabet) + len(special):
        raise ConfigError(
            f"a vocabulary of {vocab_size} is too small: bytes and markers take {len(alphabet) + len(special)}\n"
            f"Raise --vocab-size."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path, *, chat: ChatFormat, max_length: int) -> None:
    """Writes ``tokenizer.json`` and ``tokenizer_config.json`` (with the chat template)."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": chat.bos,
        "eos_token": chat.end,
        "pad_token": chat.pad,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "chat_template": chat.template(),
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a model directory, to which a marker that stands in the text is text.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing\nGive a model directory that has one.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises its bare base class
        raise CheckpointError(f"{path} cannot be read: {error}\nWrite the model again.") from None
    tokenizer.encode_special_tokens = True
    return tokenizer
