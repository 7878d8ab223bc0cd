"""Every family through the real engine: speculation, batching, chunking and preemption are invisible in the tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paceline.models import load_model
from tests.invariance.test_matrix import OTHERS
from tests.support import proposers
from tests.support.checkpoints import perturb
from tests.support.engines import Hook, Models, preempt_every, run
from tests.support.zoo import VOCAB_SIZE, dynamic, phi3_longrope, tiny

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    "qwen3": ("qwen3", {}),
    "gemma2": ("gemma2", {}),
    "gemma3": ("gemma3_text", {}),
    "phi3, regimes": ("phi3", phi3_longrope()),
    "phi3, regimes and window": ("phi3", {**phi3_longrope(), "sliding_window": 9}),
    "llama, regimes": ("llama", dynamic()),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox, sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "opt": ("opt", {}),
    "opt 350m": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 20, "seed": 7}),
}
NEAR = {"method": "draft_model", "model": "near", "num_speculative_tokens": 4}
TREE = {"method": "random_tree", "model": "9", "num_speculative_tokens": 3}
WAYS: dict[str, tuple[dict[str, Any] | None, dict[str, Any], Hook | None]] = {
    "chunks, sdpa": (None, {"block_size": 4, "max_num_batched_tokens": 5}, None),
    "draft": (NEAR, {"block_size": 4}, None),
    "draft, chunks, preemption": (NEAR, {"block_size": 16, "max_num_batched_tokens": 16}, preempt_every(4)),
    "trees, chunks": (TREE, {"block_size": 1, "max_num_batched_tokens": 16}, None),
    "trees, preemption, reference": (TREE, {"cache": "static", "attention_backend": "reference"}, preempt_every(3)),
}


@pytest.fixture(scope="module", params=KINDS)
def models(request, tmp_path_factory) -> Models:
    family, options = KINDS[request.param]
    directory = tmp_path_factory.mktemp("family")
    tiny(directory / "target", family, **options)
    perturb(directory / "target", directory / "near", 0.03)
    load = lambda name: load_model(directory / name, dtype=torch.float64)  # noqa: E731
    return Models(load("target"), {"near": load("near")})


@pytest.fixture(scope="module")
def expected(models: Models) -> list[list[list[int]]]:
    """Each call alone, unspeculated, recomputing everything in every step, with the spelled-out attention."""
    engine = models.engine(cache="none", attention_backend="reference")
    alone = [run(engine, [job])[0] for job in OTHERS]
    for job, tokens in zip(OTHERS, alone, strict=True):
        proposers.TRUTH.update({(job.prompt, index): sample for index, sample in enumerate(tokens)})
    return alone


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_the_same_tokens(way: str, models: Models, expected: list[list[list[int]]]) -> None:
    assert models.target.config.vocab_size == VOCAB_SIZE  # that of the prompts
    speculation, options, hook = WAYS[way]
    engine = models.engine(speculation, **options)
    assert run(engine, OTHERS, hook=hook) == expected
    assert engine.counters.num_accepted > 0 or speculation is None
