"""Knows how to read config.json of both generations into a checked ModelConfig; nothing of tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paceline.core.errors import CheckpointError
from paceline.core.files import is_fetched, read_whole
from paceline.layers.mlp import activations

MAX_SIZE = 2**26
MAX_POSITIONS = 2**31 - 1
MAX_LAYERS = 4096
CORRECT = "Download the file again, or correct it as the model was trained."
DTYPES: dict[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What every family knows of itself; a family's own config adds what its layers need."""

    family: str
    """config.json's ``model_type``."""
    vocab_size: int
    hidden_size: int
    num_layers: int
    max_position_embeddings: int
    eos_token_ids: frozenset[int]
    """From config.json and generation_config.json."""
    bos_token_id: int | None
    tied: bool
    """The output matrix is the embedding matrix."""
    dtype: torch.dtype | None
    """What the checkpoint says it is stored in, if it says."""


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        CheckpointError: the file is missing, was not fetched, or is not a JSON object.
    """
    is_fetched(path)
    try:
        values = json.loads(read_whole(path).decode("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing\nGive a Hugging Face model directory.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}\nDownload the file again.") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(values).__name__}\nDownload the file again.")
    return values


class Fields:
    """Checked access to a config file's values; null counts as absent, except where a method says otherwise."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path = path
        self.values = {key: value for key, value in values.items() if value is not None}
        self.nulls = frozenset(values) - frozenset(self.values)

    def filled(self, **defaults: Any) -> Fields:
        """The same with values for keys that are absent; None is no value."""
        given = {key: value for key, value in defaults.items() if value is not None}
        return Fields(self.path, dict.fromkeys(self.nulls) | given | self.values)

    def nested(self, key: str) -> Fields:
        """The object under ``key``; empty if absent."""
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            raise self.error(key, "an object")
        return Fields(self.path, value)

    def error(self, key: str, allowed: str) -> CheckpointError:
        found = f"got {self.values[key]!r}"[:200] if key in self.values else "and is missing"
        return CheckpointError(f"{self.path}: {key} must be {allowed}, {found}\n{CORRECT}")

    def integer(self, key: str, default: int | None = None, *, low: int = 1, high: int = MAX_SIZE) -> int:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(key, f"an integer in [{low}, {high}]")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e300:
            raise self.error(key, "a number above 0")
        return float(value)

    def integer_or_none(self, key: str, default: int | None) -> int | None:
        """Null is none; absent is the default."""
        absent = key in self.nulls or (default is None and key not in self.values)
        return None if absent else self.integer(key, default, high=MAX_POSITIONS)

    def number_or_none(self, key: str, default: float | None) -> float | None:
        """Null is none; absent is the default."""
        absent = key in self.nulls or (default is None and key not in self.values)
        return None if absent else self.number(key, default)

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """A list of ``count`` finite numbers above 0."""
        values = self.values.get(key)
        if not isinstance(values, list) or len(values) != count:
            raise CheckpointError(f"{self.path}: {key} must be a list of {count} numbers{_length(values)}\n{CORRECT}")
        return tuple(Fields(self.path, {key: value}).number(key) for value in values)

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def activation(self, key: str, default: str) -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str) or value not in activations:
            raise self.error(key, f"one of {', '.join(sorted(activations))}")
        return value

    def token_ids(self, key: str) -> set[int]:
        """One id or a list of ids; those outside the vocabulary (some files say -1) are never generated."""
        value = self.values.get(key, [])
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
            raise self.error(key, "a token id or a list of token ids")
        return {token for token in ids if token >= 0}

    def dtype(self) -> torch.dtype | None:
        """``dtype``, or ``torch_dtype`` as files before Transformers 5 call it."""
        key = "dtype" if "dtype" in self.values else "torch_dtype"
        if key not in self.values:
            return None
        name = str(self.values[key]).removeprefix("torch.")
        if name not in DTYPES:
            raise self.error(key, f"one of {', '.join(DTYPES)}")
        return DTYPES[name]


def _length(values: object) -> str:
    return f", got {len(values)}" if isinstance(values, list) else ""


def common(fields: Fields, generation: Fields | None, *, tied: bool) -> dict[str, Any]:
    """The fields of ModelConfig whose names all families share; ``tied`` is the family's default."""
    eos = fields.token_ids("eos_token_id") | (generation.token_ids("eos_token_id") if generation else set())
    vocab_size = fields.integer("vocab_size")
    return {
        "family": fields.values["model_type"],
        "vocab_size": vocab_size,
        "eos_token_ids": frozenset(token for token in eos if token < vocab_size),
        "bos_token_id": min(fields.token_ids("bos_token_id"), default=None),
        "tied": fields.flag("tie_word_embeddings", tied),
        "dtype": fields.dtype(),
    }
