"""Tiny models in float64, where a row's argmax does not depend on how many rows ran beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paceline.models import load_model
from tests.support.checkpoints import perturb, tiny_gpt2, tiny_llama
from tests.support.engines import Models
from tests.support.methods import write_modules

VOCAB_SIZE = 61


def _models(directory, make, **options) -> Models:
    target, near, far = (directory / name for name in ("target", "near", "far"))
    make(target, vocab_size=VOCAB_SIZE, **options)
    perturb(target, near, 0.03)
    perturb(target, far, 0.15, seed=2)
    tiny_llama(directory / "sizes", vocab_size=VOCAB_SIZE)
    loaded, near, far, reader = (load_model(path, dtype=torch.float64) for path in (target, near, far, near))
    places = write_modules(directory / "modules", loaded.config, directory / "sizes")
    return Models(loaded, {"near": near, "far": far, "reader": reader}, places)


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Models:
    return _models(tmp_path_factory.mktemp("llama"), tiny_llama)


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory) -> Models:
    return _models(tmp_path_factory.mktemp("gpt2"), tiny_gpt2)


@pytest.fixture(scope="session")
def known(tmp_path_factory) -> Any:
    """(family, kind of weights) -> ``Known``"""
    from tests.invariance.known import Known  # noqa: PLC0415 (it needs this module)

    cache: dict[tuple[str, str], Known] = {}

    def get(family: str, kind: str) -> Known:
        if (family, kind) not in cache:
            cache[family, kind] = Known(tmp_path_factory.mktemp("bits"), family, kind)
        return cache[family, kind]

    return get
