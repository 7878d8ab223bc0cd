"""Methods whose stages read what the target left: texts are as without drafts, and calls as passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paceline.core.config import EngineConfig, SpeculativeConfig
from paceline.core.errors import ConfigError
from paceline.engine.build import build_engine
from paceline.engine.engine import Engine
from paceline.models import ModelConfig, load_model
from tests.draft_checkpoints import tiny_eagle, tiny_eagle3, tiny_medusa
from tests.draft_checkpoints_block import dflash, peagle
from tests.support.checkpoints import tiny_llama
from tests.support.engines import mixed_jobs, one_by_one, preempt_every, run
from tests.support.native import needs_library

VOCAB, LAYERS = 15, 4
JOBS = mixed_jobs(VOCAB)
MODULES: dict[str, Callable[[Path, ModelConfig], Any]] = {
    "eagle": tiny_eagle,
    "eagle3": lambda path, target: tiny_eagle3(path, target, draft_vocab_size=11, taps=(1, 2, 4)),
    "medusa": lambda path, target: tiny_medusa(path, target, rows=11, vllm=True, file="model.safetensors"),
    "p_eagle": lambda path, _: peagle(path, path.parent / "target", draft_vocab=11),
    "dflash": lambda path, _: dflash(path, path.parent / "target"),
}
"""Writes a module for each method."""
CHAINS = {"p_eagle", "dflash"}
"""Methods that draft no trees."""
SHAPES: dict[str, dict[str, Any]] = {
    "chain": {},
    "tree": {"draft_top_k": 3},
    "pruned": {"draft_top_k": 3, "draft_max_nodes": 4},
    "quantised": {"draft_top_k": 3, "draft_quantization": "int8"},
    "quantised chain": {"draft_quantization": "int8"},
}
methods = pytest.mark.parametrize("method", MODULES)
drafts = pytest.mark.parametrize(
    ("method", "shape"),
    [
        (method, shape)
        for method in MODULES
        for shape in ("chain", "tree", "pruned")
        if shape == "chain" or method not in CHAINS
    ],
)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, and a module for it by method."""
    directory = tmp_path_factory.mktemp("modules")
    tiny_llama(directory / "target", vocab_size=VOCAB, layers=LAYERS, hidden=32, max_positions=128)
    config = load_model(directory / "target").config
    for method, write in MODULES.items():
        write(directory / method, config)
    return directory


def engine_of(places: Path, method: str | None = None, *, shape: str = "chain", **options: Any) -> Engine:
    wanted = {"method": method, "model": str(places / str(method)), "num_speculative_tokens": 3, **SHAPES[shape]}
    speculative = SpeculativeConfig.of(wanted if method else None)
    config = EngineConfig.of(**{"max_num_seqs": 8, "device": "cpu", **options}, speculative=speculative)
    return build_engine(places / "target", config)


@drafts
@pytest.mark.parametrize("preempt", [0, 3])
def test_texts_are_those_without_drafts(method: str, shape: str, preempt: int, places: Path) -> None:
    plain = run(engine_of(places, dtype="float64"), JOBS)
    engine = engine_of(places, method, shape=shape, dtype="float64", block_size=4, max_num_batched_tokens=40)
    hook = preempt_every(preempt) if preempt else None
    assert run(engine, JOBS, hook=hook) == plain
    assert engine.counters.num_accepted > 2
    assert run(engine, JOBS) == plain


@needs_library
@drafts
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rounds_of_a_call_are_those_of_passes(method: str, shape: str, dtype: str, places: Path) -> None:
    """Texts, drafts and what stands of them."""
    plain = run(engine_of(places, dtype=dtype), JOBS)
    eager = one_by_one(engine_of(places, method, shape=shape, dtype=dtype, num_scheduler_steps=1))
    assert run(eager, JOBS) == plain
    engine = engine_of(places, method, shape=shape, dtype=dtype, num_scheduler_steps=3)
    assert run(engine, JOBS) == plain
    assert engine.computation.graphs.num_captured
    assert set(engine.computation.eager_steps) <= {"controls that look at a text's history"}
    found, wanted = engine.counters, eager.counters
    assert (found.num_drafted, found.num_accepted) == (wanted.num_drafted, wanted.num_accepted)
    assert found.num_accepted > 2


@needs_library
@methods
@pytest.mark.parametrize("quantization", ["int8"])
def test_quantised_weights_change_no_text(method: str, quantization: str, places: Path) -> None:
    plain = run(engine_of(places, quantization=quantization), JOBS)
    shape = "quantised chain" if method in CHAINS else "quantised"
    engine = engine_of(places, method, shape=shape, quantization=quantization)
    assert run(engine, JOBS) == plain
    assert engine.counters.num_accepted > 2


@methods
def test_a_prefix_that_is_found_again_costs_no_acceptance(method: str, places: Path) -> None:
    """Pairs lie at the later token's slot, and features in the target's pages."""

    def accepted(**options: Any) -> list[int]:
        shape = "chain" if method in CHAINS else "tree"
        engine = engine_of(places, method, shape=shape, dtype="float64", block_size=4, **options)
        counts = []
        for _ in range(2):
            before = engine.counters.num_accepted
            run(engine, JOBS)
            counts.append(engine.counters.num_accepted - before)
        assert bool(engine.cache.num_prefix_hits) == options.get("enable_prefix_caching", True)
        return counts

    cold, warm = accepted()
    expected, again = accepted(enable_prefix_caching=False)
    assert cold == expected == again > 0
    assert warm >= cold  # a prompt of which all but one token is found is drafted for in its first step


@methods
def test_a_method_without_its_module_is_refused(method: str, places: Path) -> None:
    speculative = SpeculativeConfig.of({"method": method})
    with pytest.raises(ConfigError, match=f"the {method} method needs"):
        build_engine(places / "target", EngineConfig.of(device="cpu", speculative=speculative))


def test_more_levels_than_heads_are_refused(places: Path) -> None:
    speculative = SpeculativeConfig.of(
        {"method": "medusa", "model": str(places / "medusa"), "num_speculative_tokens": 4}
    )
    with pytest.raises(ConfigError, match="to at most 3"):
        build_engine(places / "target", EngineConfig.of(device="cpu", speculative=speculative))
