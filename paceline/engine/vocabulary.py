"""Knows whether a model's tokenizer and its vocabulary belong together."""

from __future__ import annotations

from pathlib import Path

from paceline.core.errors import CheckpointError
from paceline.models import load_config
from paceline.text import Tokenizer


def check_vocabulary_of(tokenizer: Tokenizer | None, model_path: Path) -> None:
    """Before weights are read, which takes long.

    Raises:
        CheckpointError: plain text becomes tokens that the model lacks.
    """
    if tokenizer is None:
        return
    vocab_size = load_config(model_path).vocab_size
    outside = tokenizer.ids_outside(vocab_size)
    if outside:
        raise CheckpointError(
            f"{model_path / 'tokenizer.json'} makes {len(outside)} tokens that the model lacks, up to id "
            f"{outside[-1]}, and its vocab_size is {vocab_size}\nGive the tokenizer that belongs to the model."
        )
