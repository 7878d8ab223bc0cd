"""Tiny models on native kernels, of many families and kinds of weights, and what an oracle says of their answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paceline.kernels.native.packing import pack
from paceline.layers.linear import Linear
from paceline.models import load_model
from paceline.runner.native import NativeExecutor
from tests.invariance.bits import Logits, run_for_logits
from tests.invariance.test_matrix import OTHERS, PROMPT
from tests.support import proposers
from tests.support.checkpoints import perturb
from tests.support.engines import Job, Models, Tokens
from tests.support.zoo import dynamic, tiny

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

    def tell(self) -> None:
        """Has the proposers of trees know what will be said."""
        for job, samples in zip(JOBS, self.expected, strict=True):
            proposers.TRUTH.update({(job.prompt, index): tokens for index, tokens in enumerate(samples)})
