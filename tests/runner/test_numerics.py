"""Exact numerics never leave the native kernels and are what one gets; fast ones share passes with torch by rows."""

from __future__ import annotations

import pytest
import torch

from paceline.core.config import EngineConfig
from paceline.layers.linear import Linear
from paceline.models import load_model
from paceline.runner import Choice
from paceline.runner.impl import model_impls
from paceline.runner.native import NativeExecutor
from paceline.runner.numerics import MANY_ROWS, FastExecutor
from paceline.runner.torch_executor import TorchExecutor
from tests.support.engines import Job, Models, one_by_one, run
from tests.support.native import needs_library
from tests.support.zoo import random_tokens, tiny

PROMPTS = [tuple(random_tokens(length, seed=length)) for length in (2, MANY_ROWS - 1, MANY_ROWS, MANY_ROWS + 9)]


@pytest.fixture
def model(tmp_path):
    tiny(tmp_path, "llama")
    return load_model(tmp_path, dtype=torch.float32)


def test_exact_is_the_default():
    assert EngineConfig.of().numerics == Choice().numerics == "exact"


@needs_library
def test_fast_passes_of_many_rows_are_torchs(model):
    engine = Models(model, {}).engine(model_impl="native", numerics="fast", max_num_batched_tokens=256)
    executor = one_by_one(engine).runner.executor
    assert isinstance(executor, FastExecutor)
    rows = {}
    for name, kind in (("_few", NativeExecutor), ("_many", TorchExecutor)):
        part = getattr(executor, name)
        assert isinstance(part, kind)
        rows[name] = counts = []
        part.run = counted(part.run, counts)
    found = [run(engine, [Job(prompt)]) for prompt in PROMPTS]
    assert max(rows["_few"]) == MANY_ROWS - 1
    assert sorted(rows["_many"]) == [MANY_ROWS, MANY_ROWS + 9]
    exact = Models(model, {}).engine(model_impl="native", max_num_batched_tokens=256)
    assert type(exact.runner.executor) is NativeExecutor
    assert [run(exact, [Job(prompt)]) for prompt in PROMPTS] == found  # float32: the choices are far apart


def counted(compute, counts):
    def counting(batch, *more):
        counts.append(len(batch.token_ids))
        return compute(batch, *more)

    return counting


@needs_library
@pytest.mark.parametrize(("numerics", "kept"), [("exact", False), ("fast", True)])
def test_weights_stay_only_where_torch_reads_them(numerics, kept, model):
    model_impls["native"].prepare_weights(Choice(numerics=numerics), model)
    linears = [module for module in model.modules() if isinstance(module, Linear)]
    assert all(bool(module.weight.numel()) is kept and module.packed is not None for module in linears)
