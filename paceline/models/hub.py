"""Knows how a model's name becomes a local directory; nothing of what lies in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from paceline.core.errors import CheckpointError
from paceline.models.checkpoint import INDEX, weights_are_there

CONFIG_FILES = ["config.json", "generation_config.json"]
TEXT_FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
TEXT_FILES += ["chat_template.jinja", "chat_template.json"]
WEIGHT_FILES = ["*.safetensors", INDEX]
# What is read of a model, and nothing that could run code. What is not listed here may be missing from a cache.
READ_FILES = [*CONFIG_FILES, *TEXT_FILES, *WEIGHT_FILES]
# Other formats of the same weights lie in folders (onnx/, original/) or, of Mistral, in consolidated files.
IGNORED = ["*/*", "consolidated*"]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")


def resolve_model(
    name_or_path: str | Path,
    *,
    only: Sequence[str] = READ_FILES,
    also: Sequence[str] = (),
    revision: str | None = None,
) -> Path:
    """The directory of a model: a local one, or a Hugging Face Hub id, downloaded if it is not in the cache yet.

    Args:
        only: patterns of the files that are needed.
        also: patterns of files that are taken along where the Hub can be reached.
        revision: a branch, a tag or a commit of the Hub's; a local directory has none, and it is ignored.

    Raises:
        CheckpointError: neither a directory nor a Hub model that can be reached.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path} is a file\nGive the model's directory.")
    if not HUB_ID.fullmatch(str(name_or_path)):
        raise CheckpointError(f"there is no directory {path}\nGive a model directory or a Hub id such as owner/name.")
    try:
        return _snapshot(str(name_or_path), revision, only, also)
    except Exception as error:  # the hub client raises a dozen types, its HTTP library's among them
        cause = str(error).strip().split("\n")[0] or type(error).__name__
        of = "" if revision is None else f" at revision {revision!r}"
        raise CheckpointError(
            f"{name_or_path!r}{of} is not a local directory and cannot be fetched from the Hugging Face Hub: {cause}\n"
            "Give a local model directory; or check the name, the network, HF_HUB_OFFLINE, and for a gated model"
            " `hf auth login`."
        ) from error


def configs_of(name_or_path: str | Path, revision: str | None = None) -> Path:
    """The directory of a model of which only the configs need be there; raises as ``resolve_model``."""
    return resolve_model(name_or_path, only=CONFIG_FILES, revision=revision)


def texts_of(name_or_path: str | Path, revision: str | None = None) -> Path:
    """As ``configs_of``, with the tokenizer's files where the model has some."""
    return resolve_model(name_or_path, only=CONFIG_FILES, also=TEXT_FILES, revision=revision)


def _snapshot(name: str, revision: str | None, only: Sequence[str], also: Sequence[str]) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[*only, *also], ignore_patterns=IGNORED))
    except LocalEntryNotFoundError:
        cached = _cached(name, revision, only)
        if cached is None:
            raise
        return cached


def _cached(name: str, revision: str | None, only: Sequence[str]) -> Path | None:
    """The snapshot in the cache, if it has what is needed: of the weights, those that an index names."""
    exact = [pattern for pattern in only if pattern not in WEIGHT_FILES]
    try:
        found = Path(
            snapshot_download(
                name, revision=revision, allow_patterns=exact, ignore_patterns=IGNORED, local_files_only=True
            )
        )
    except LocalEntryNotFoundError:
        return None
    return found if len(exact) == len(only) or weights_are_there(found) else None
