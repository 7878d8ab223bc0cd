"""With native kernels the logits of a token have the same bits, however it came to be computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paceline.kernels.native import library
from paceline.kernels.native.packing import pack
from paceline.layers.linear import Linear
from paceline.models import load_model
from paceline.runner.native import NativeExecutor
from tests.checkpoints import perturb
from tests.invariance import proposers
from tests.invariance.bits import Logits, assert_same_logits, run_for_logits
from tests.invariance.cases import CACHES, SAMPLING, SPECULATION
from tests.invariance.engines import Hook, Job, Models, Tokens, preempt_every
from tests.invariance.test_matrix import OTHERS, PROMPT
from tests.kernels.native import needs_library, on_threads
from tests.models.zoo import dynamic, tiny

pytestmark = needs_library

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "gemma2": ("gemma2", {}),  # windows, soft caps, norms behind attention and MLP
    "qwen3": ("qwen3", {}),  # normed heads
    "opt": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 20, "seed": 7}),
    "gpt_neox": ("gpt_neox", {}),
    "regimes": ("llama", dynamic()),
}
KINDS = ("fp32", "bf16", "int8", "int4")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32, "int4": torch.bfloat16}
EVERYTHING = [pytest.param(family, kind, id=f"{family}-{kind}") for family in FAMILIES for kind in KINDS]
JOBS = [Job(PROMPT, Job(()).params), *OTHERS]

WAYS: dict[str, tuple[str, dict[str, Any], Hook | None, int]] = {
    "batch": ("off", {}, None, 1),
    "two threads": ("off", {"max_num_batched_tokens": 16}, None, 2),
    "small chunks, small pages, preempted": (
        "off",
        {**CACHES["page1"], "max_num_batched_tokens": 5},
        preempt_every(3),
        1,
    ),
    "drafts": ("near", CACHES["page4"], None, 1),
    "drafts, chunks, preempted": ("near", {**CACHES["static"], "max_num_batched_tokens": 16}, preempt_every(4), 2),
    "trees": ("tree", {**CACHES["page4"], "max_num_batched_tokens": 64}, None, 1),
    "big trees, preempted": ("big_tree", CACHES["page16"], preempt_every(3), 2),
}


class Known:
    """Models of one family and kind, and what the oracle says of them."""

    def __init__(self, directory: Any, family: str, kind: str) -> None:
        name, options = FAMILIES[family]
        tiny(directory / "target", name, **options)
        perturb(directory / "target", directory / "near", 0.03)
        target, near = (load_model(directory / part, dtype=DTYPES[kind]) for part in ("target", "near"))
        if kind.startswith("int"):
            for linear in (module for module in target.modules() if isinstance(module, Linear)):
                linear.packed = pack(linear.weight, kind, bias=linear.bias)
        self.models = Models(target, {"near": near})
        self.expected, self.logits = self.oracle()

    def oracle(self) -> tuple[list[Tokens], Logits]:
        """Each call alone, unspeculated, recomputing everything in every step."""
        engine = self.models.engine(cache="none", model_impl="native")
        tokens, logits = [], Logits()
        for job in JOBS:
            found, rows = run_for_logits(self.models.engine(cache="none", model_impl="native"), [job])
            tokens += found
            logits |= rows
        assert isinstance(engine.runner.executor, NativeExecutor)
        return tokens, logits


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> Any:
    cache: dict[tuple[str, str], Known] = {}

    def get(family: str, kind: str) -> Known:
        if (family, kind) not in cache:
            cache[family, kind] = Known(tmp_path_factory.mktemp("bits"), family, kind)
        return cache[family, kind]

    return get


def check(known: Known, way: str) -> None:
    speculation, options, hook, threads = WAYS[way]
    for job, samples in zip(JOBS, known.expected, strict=True):
        proposers.TRUTH.update({(job.prompt, index): tokens for index, tokens in enumerate(samples)})
    config = SPECULATION[speculation]
    drafting = None if config is None else {**config, "num_speculative_tokens": 4}
    engine = known.models.engine(drafting, model_impl="native", **options)
    with on_threads(threads):
        tokens, logits = run_for_logits(engine, JOBS, hook=hook)
    assert tokens == known.expected
    assert_same_logits(logits, known.logits)
    assert engine.counters.num_accepted > 0 or config is None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("family", "kind"), EVERYTHING)
def test_ways_to_the_same_bits(family: str, kind: str, way: str, known: Any) -> None:
    check(known(family, kind), way)


@pytest.mark.parametrize("level", library.levels())
def test_at_every_level(level: str, tmp_path: Any) -> None:
    library.select(level)
    try:
        models = Known(tmp_path, "llama", "bf16")
        check(models, "drafts, chunks, preempted")
        check(models, "trees")
    finally:
        library.reload()


def test_sampling_controls_see_the_same_bits(known: Any) -> None:
    models = known("llama", "bf16").models
    from paceline.core.params import SamplingParams  # noqa: PLC0415

    for controls in SAMPLING.values():
        job = Job(PROMPT, SamplingParams(**controls, max_tokens=14))
        expected, logits = run_for_logits(models.engine(cache="none", model_impl="native"), [job])
        engine = models.engine({**SPECULATION["near"], "num_speculative_tokens": 4}, model_impl="native")  # type: ignore[dict-item]
        found, rows = run_for_logits(engine, [job], hook=preempt_every(3))
        assert found == expected
        assert_same_logits(rows, logits)
