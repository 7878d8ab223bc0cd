"""``paceline models`` lists the embedded pair and the Hub's cache, and says which of them will not run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paceline.cli import models as models_command
from paceline.cli.main import run
from tests.support.checkpoints import tiny_llama


def cached(cache: Path, name: str, **config: str) -> None:
    """What the Hub's client leaves of a download."""
    repo = cache / f"models--{name.replace('/', '--')}"
    snapshot = repo / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0123abc")
    (snapshot / "config.json").write_text(json.dumps(config))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    return tmp_path / "hub"


def listed(capsys) -> list[dict]:
    assert run(["models", "--json"]) == 0
    return json.loads(capsys.readouterr().out)["models"]


def test_embedded_and_cached_are_listed(capsys, monkeypatch, tmp_path, cache) -> None:
    tiny_llama(tmp_path / "target")
    monkeypatch.setattr(models_command, "EMBEDDED_TARGET", tmp_path / "target")
    monkeypatch.setattr(models_command, "EMBEDDED_DRAFT", tmp_path / "draft")
    cached(cache, "owner/small", model_type="llama")
    cached(cache, "owner/other", model_type="mamba")
    cached(cache, "owner/broken")
    found = listed(capsys)
    assert [(model["name"], model["place"], model["family"], model["supported"]) for model in found] == [
        ("paceline-pair (target)", "embedded", "llama", True),
        ("owner/broken", "cached", "unknown", False),
        ("owner/other", "cached", "mamba", False),
        ("owner/small", "cached", "llama", True),
    ]
    assert found[0]["num_bytes"] > 1000
    assert run(["models"]) == 0
    text = capsys.readouterr().out
    assert "owner/small" in text
    assert "not supported" in text


def test_nothing_is_said_to_be_nothing(capsys, monkeypatch, tmp_path, cache) -> None:
    for name in ("EMBEDDED_TARGET", "EMBEDDED_DRAFT"):
        monkeypatch.setattr(models_command, name, tmp_path / "none")
    assert listed(capsys) == []
    assert run(["models"]) == 0
    assert "No model" in capsys.readouterr().out
