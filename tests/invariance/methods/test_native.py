"""With native kernels every method leaves the texts as they are, for every kind of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paceline.core.config import EngineConfig, SpeculativeConfig
from paceline.core.params import SamplingParams
from paceline.engine.build import build_engine
from paceline.engine.engine import Engine
from paceline.models import load_model
from paceline.runner.native import NativeExecutor
from tests.invariance.conftest import VOCAB_SIZE
from tests.invariance.methods.answers import speculation
from tests.support.checkpoints import perturb, tiny_llama
from tests.support.engines import Job, Tokens, preempt_every, prompts, run
from tests.support.matrix import covers
from tests.support.methods import write_modules
from tests.support.native import needs_library

pytestmark = needs_library

KINDS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "float32", "quantization": "int8"},
    "int4": {"dtype": "bfloat16", "quantization": "int4"},
}
DRAFTS = {"int8": "int8", "int4": "int8"}
"""Modules are too narrow for groups of int4."""
JOBS = [
    Job(prompt, SamplingParams(**controls, max_tokens=16, ignore_eos=True))
    for prompt, controls in zip(
        prompts(6, VOCAB_SIZE, [19, 6, 33]),
        ({"temperature": 0.0}, {"temperature": 0.8, "seed": 4, "n": 2}, {"temperature": 1.0, "seed": 9, "top_p": 0.9}),
        strict=True,
    )
]
_PLAIN: dict[str, list[Tokens]] = {}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("native")
    tiny_llama(directory / "target", vocab_size=VOCAB_SIZE, intermediate=64)
    perturb(directory / "target", directory / "near", 0.03)
    modules = write_modules(directory / "modules", load_model(directory / "target").config, directory / "target")
    return {"target": directory / "target", "near": directory / "near", **modules}


def engine_of(places: dict[str, Path], kind: str, method: str | None = None, **options: Any) -> Engine:
    wanted = None if method is None else speculation(method)
    if wanted is not None and "model" in wanted:
        wanted["model"] = str(places[wanted["model"]])
        wanted["draft_quantization"] = DRAFTS.get(kind)
    config = EngineConfig.of(
        device="cpu", max_num_seqs=8, speculative=SpeculativeConfig.of(wanted), **KINDS[kind], **options
    )
    return build_engine(places["target"], config)


@covers("native {}", param=("kind", KINDS))
def test_native_kernels(method: str, kind: str, places: dict[str, Path]) -> None:
    """Several rounds a call, and preempted steps of small chunks."""
    if kind not in _PLAIN:
        _PLAIN[kind] = run(engine_of(places, kind), JOBS)
    engine = engine_of(places, kind, method, num_scheduler_steps=3)
    assert isinstance(engine.runner.executor, NativeExecutor)
    assert run(engine, JOBS) == _PLAIN[kind]
    assert engine.counters.num_drafted > 0
    small = engine_of(places, kind, method, block_size=4, max_num_batched_tokens=24)
    assert run(small, JOBS, hook=preempt_every(3)) == _PLAIN[kind]
