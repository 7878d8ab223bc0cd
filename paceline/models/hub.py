"""Knows how a model's name becomes a local directory; nothing of what lies in it."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download

from paceline.core.errors import CheckpointError

# Weights as safetensors, JSON, tokenizers and chat templates: nothing that could run code.
ALLOWED = ["*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]
CONFIG_FILES = ["config.json", "generation_config.json"]
# Other formats of the same weights lie in folders (onnx/, original/) or, of Mistral, in consolidated files.
IGNORED = ["*/*", "consolidated*"]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")


def resolve_model(name_or_path: str | Path, *, only: list[str] = ALLOWED) -> Path:
    """The directory of a model: a local one, or a Hugging Face Hub id, downloaded if it is not in the cache yet.

    Args:
        only: patterns of the files that are needed.

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
        return Path(snapshot_download(str(name_or_path), allow_patterns=only, ignore_patterns=IGNORED))
    except Exception as error:  # the hub client raises a dozen types, its HTTP library's among them
        cause = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{name_or_path!r} is not a local directory and cannot be fetched from the Hugging Face Hub: {cause}\n"
            "Give a local model directory; or check the name, the network, HF_HUB_OFFLINE, and for a gated model"
            " `hf auth login`."
        ) from error
