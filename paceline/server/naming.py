"""Knows what the service calls its model, and the state of the engine that answers depend on."""

from __future__ import annotations

import hashlib
import os

from paceline import __version__
from paceline.server.engine_client import EngineClient


def fingerprint(engine: EngineClient) -> str:
    """OpenAI's ``system_fingerprint``: another one wherever the same seed might give another text."""
    facts = getattr(engine, "facts", None)
    described = f"{__version__} {engine.model_name} {engine.max_model_len} {engine.vocab_size} {facts}"
    return f"fp_{hashlib.sha256(described.encode()).hexdigest()[:10]}"


def served_name(model: str) -> str:
    """A model given by its directory is served under the directory's name: answers show no paths."""
    is_path = model in (".", "..") or model.startswith(("/", "./", "../", "~")) or model.count("/") > 1
    if not (is_path or model.endswith("/")):
        return model
    return os.path.basename(os.path.abspath(os.path.expanduser(model))) or "model"
