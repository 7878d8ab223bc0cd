"""A tiny pair of models that the commands can run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.checkpoints import perturb, tiny_llama, tiny_tokenizer


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Directories of a target and of a draft that is sometimes right."""
    target, draft = (tmp_path_factory.mktemp(name) for name in ("target", "draft"))
    tiny_llama(target)
    tiny_tokenizer(target)
    perturb(target, draft, 0.05)
    return str(target), str(draft)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No colours and no settings from outside."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith("PACELINE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "no-settings"))


def model_arguments(pair: tuple[str, str]) -> list[str]:
    return [pair[0], "--draft", pair[1]]


def root() -> Path:
    return Path(__file__).resolve().parents[2]
