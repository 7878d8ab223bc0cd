"""Knows how a Hugging Face tokenizer directory is read; knows nothing of encoding."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from paceline.core.errors import CheckpointError
from paceline.core.files import is_fetched, read_whole
from paceline.text.added_tokens import ConfigFile, add_tokens
from paceline.text.growth import check_entries, check_growth, check_written

# Keys that make other loaders import code.
CODE_KEYS = ("auto_map", "trust_remote_code")


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What a directory says: the tokenizer, the named special tokens and the chat template's source."""

    backend: tokenizers.Tokenizer
    special_tokens: Mapping[str, str]
    chat_template: str | None


def read_tokenizer(directory: Path) -> TokenizerFiles:
    """Reads ``tokenizer.json``, ``tokenizer_config.json``, ``special_tokens_map.json`` and the chat template.

    Which tokens an encoding begins and ends with is what tokenizer.json says, as in transformers 5; an
    ``add_bos_token`` in tokenizer_config.json changes nothing.

    Raises:
        CheckpointError: a missing or corrupt file, or one that asks for code to be run, by name.
    """
    path = directory / "tokenizer.json"
    if not is_fetched(path):
        raise CheckpointError(f"{directory.name}: there is no tokenizer.json\nConvert the tokenizer with transformers.")
    backend = _read_backend(path)
    config = _read_json(directory / "tokenizer_config.json")
    _refuse_code(directory / "tokenizer_config.json", config)
    file = ConfigFile("tokenizer_config.json", config)
    mapped = ConfigFile("special_tokens_map.json", _read_json(directory / "special_tokens_map.json"))
    special_tokens = mapped.named() | file.named()
    # A file made for training may cut or pad; a prompt is never cut silently.
    backend.no_truncation()
    backend.no_padding()
    add_tokens(backend, file, special_tokens)
    check_entries(directory.name, backend)
    return TokenizerFiles(backend, special_tokens, _chat_template(directory, config))


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    text = _read_text(path)
    # The library normalizes added tokens while it loads, so what multiplies text is refused before.
    check_written(path.name, _parsed(path, text))
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # The library raises bare Exception.
        raise CheckpointError(f"{path.name}: not a tokenizer ({error})") from None
    check_growth(path.name, backend)
    return backend


def _refuse_code(path: Path, config: Mapping[str, Any]) -> None:
    for key in CODE_KEYS:
        # "trust_remote_code": false asks for nothing.
        if key in config and config[key] is not False:
            raise CheckpointError(
                f"{path} has {key!r}: the tokenizer asks for code from its own repository to be run\n"
                "Paceline never runs a checkpoint's code; use a version of the model that needs none."
            )


def _read_json(path: Path) -> dict[str, Any]:
    if not is_fetched(path):
        return {}
    return _parsed(path, _read_text(path))


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name}: expected an object, got {type(value).__name__}")
    return value


def _read_text(path: Path) -> str:
    try:
        return read_whole(path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path.name}: cannot be read ({type(error).__name__})") from None


def _chat_template(directory: Path, config: Mapping[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if is_fetched(path):
        return _read_text(path)
    found: object = config.get("chat_template") or _read_json(directory / "chat_template.json").get("chat_template")
    if found is None or isinstance(found, str):
        return found
    named: dict[str, str] = {
        item["name"]: item["template"]
        for item in (found if isinstance(found, list) else ())
        if isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("template"), str)
    }
    if not named:
        raise CheckpointError("tokenizer_config.json: chat_template must be a string or a list of named templates")
    return named.get("default", next(iter(named.values())))
