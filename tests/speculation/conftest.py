"""A tiny model over a few tokens in float64, a draft that is near it, and one that ranks tokens the other way round."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from paceline.models import load_model
from tests.speculation.joint import VOCAB, Oracle
from tests.support.checkpoints import perturb, tiny_llama
from tests.support.engines import Models


def _reversed(source: Path, out: Path) -> None:
    perturb(source, out, 0.0)
    for file in out.glob("*.safetensors"):
        tensors = load_file(file)
        tensors["lm_head.weight"] = -tensors["lm_head.weight"]
        save_file(tensors, file, metadata={"format": "pt"})


@pytest.fixture(scope="session")
def narrow(tmp_path_factory) -> Models:
    root = tmp_path_factory.mktemp("narrow")
    target, near, far = (root / name for name in ("target", "near", "reversed"))
    tiny_llama(target, vocab_size=VOCAB, hidden=16, intermediate=24, num_heads=2, num_kv_heads=1, layers=1)
    perturb(target, near, 0.3)
    _reversed(target, far)
    load = lambda path: load_model(path, dtype=torch.float64)  # noqa: E731
    return Models(load(target), {"near": load(near), "reversed": load(far)})


@pytest.fixture(scope="session")
def oracle(narrow) -> Oracle:
    return Oracle(narrow.target)
