"""Tiny checkpoints on disk, with what transformers makes of them, and the same models loaded for bare engines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from paceline import LLM
from paceline.models import load_model
from tests.support.calls import VOCAB_SIZE, make
from tests.support.checkpoints import perturb, tiny_gpt2, tiny_llama, tiny_tokenizer
from tests.support.engines import Models


@dataclass(frozen=True)
class Checkpoints:
    """Directories; ``near`` and ``far`` are perturbed copies of ``llama``, the last two lack what their names say."""

    llama: Path
    gpt2: Path
    near: Path
    far: Path
    other_vocabulary: Path
    without_tokenizer: Path
    reference: dict[str, PreTrainedModel]
    """transformers' models of "llama" and "gpt2", in float64."""


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> Checkpoints:
    root = tmp_path_factory.mktemp("engine")
    names = ("llama", "gpt2", "near", "far", "other_vocabulary", "without_tokenizer")
    paths = {name: root / name for name in names}
    reference = {
        "llama": tiny_llama(paths["llama"], vocab_size=VOCAB_SIZE, max_positions=128).double(),
        "gpt2": tiny_gpt2(paths["gpt2"], vocab_size=VOCAB_SIZE, max_positions=128).double(),
    }
    tiny_llama(paths["without_tokenizer"], vocab_size=VOCAB_SIZE, max_positions=128)
    tiny_llama(paths["other_vocabulary"], vocab_size=VOCAB_SIZE + 1)
    for name in ("llama", "gpt2"):
        tiny_tokenizer(paths[name], vocab_size=VOCAB_SIZE)
    perturb(paths["llama"], paths["near"], 0.1)
    perturb(paths["llama"], paths["far"], 0.3, seed=2)
    return Checkpoints(**paths, reference=reference)


@pytest.fixture(scope="session")
def plain(checkpoints) -> LLM:
    """Without speculation, with everything else as it comes: what other engines' tokens must equal."""
    return make(checkpoints.llama)


@pytest.fixture(scope="session")
def perfect(checkpoints) -> LLM:
    """Drafts with the target itself: every draft token is right, so seven tokens come from each step."""
    return make(checkpoints.llama, checkpoints.llama, depth=6)


@pytest.fixture(params=["plain", "perfect", "near"])
def llm(request, checkpoints, plain, perfect) -> LLM:
    """Speculation off; always right; sometimes right."""
    ready = {"plain": plain, "perfect": perfect}
    return ready[request.param] if request.param in ready else make(checkpoints.llama, checkpoints.near)


@pytest.fixture(scope="session")
def models(checkpoints) -> Models:
    """For engines without a tokenizer; the drafts by name."""
    load = lambda path: load_model(path, dtype=torch.float64)  # noqa: E731
    broken = load(checkpoints.near)
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(torch.nan)
    return Models(
        load(checkpoints.llama), {"near": load(checkpoints.near), "far": load(checkpoints.far), "nan": broken}
    )
