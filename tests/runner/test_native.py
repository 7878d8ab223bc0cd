"""Recorded native passes compute what the torch modules compute, of every family, and refuse what they cannot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from paceline.core.errors import ConfigError
from paceline.kernels.native import library
from paceline.layers.linear import Linear
from paceline.models import load_model
from paceline.runner import Choice, resolve_impl
from paceline.runner.native import NativeExecutor, obstacle, pack_weights
from paceline.runner.torch_executor import TorchExecutor
from tests.support.checkpoints import tiny_gpt2
from tests.support.engines import Job, Models, one_by_one, run
from tests.support.native import needs_library
from tests.support.zoo import BASE, VOCAB_SIZE, dynamic, phi3_longrope, random_tokens, tiny

CPU = torch.device("cpu")
VARIANTS = {
    **{family: (family, {}) for family in BASE},
    "llama, biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, regimes": ("llama", dynamic()),
    "phi3, regimes and window": ("phi3", {**phi3_longrope(), "sliding_window": 9}),
    "gpt_neox, sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "opt 350m": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 20, "seed": 7}),
}
TAPS = (0, 1, 2)


@pytest.fixture(scope="module", params=[*VARIANTS, "gpt2"])
def model(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("variant")
    if request.param in VARIANTS:
        family, options = VARIANTS[request.param]
        tiny(directory, family, **options)
    else:
        tiny_gpt2(directory, vocab_size=VOCAB_SIZE)
    return load_model(directory, dtype=torch.float32)


def passes(model, impl):
    """All passes of a few jobs: (logits, hidden, features) of each, cloned."""
    engine = Models(model, {}).engine(model_impl=impl, block_size=4, max_num_batched_tokens=16)
    kind = {"native": NativeExecutor, "torch": TorchExecutor}[impl]
    assert isinstance(engine.runner.executor, kind)
    found = []
    compute = one_by_one(engine).runner.executor.run

    def recorded(batch, *_more):
        result = compute(batch, TAPS)
        found.append((result.logits.clone(), result.hidden.clone(), result.features.clone()))
        return result

    engine.runner.executor.run = recorded
    jobs = [Job(tuple(random_tokens(length, seed=length))) for length in (1, 23, 40)]
    return run(engine, jobs), found


@needs_library
def test_passes_are_those_of_torch(model):
    tokens, expected = passes(model, "torch")
    found_tokens, found = passes(model, "native")
    assert found_tokens == tokens
    assert len(found) == len(expected) > 10
    for ours, theirs in zip(found, expected, strict=True):
        for name, mine, other in zip(("logits", "hidden", "features"), ours, theirs, strict=True):
            assert mine.shape == other.shape, name
            assert torch.allclose(mine, other, atol=2e-4, rtol=1e-4), f"{name}: {(mine - other).abs().max()}"


@needs_library
def test_prompt_logprobs_and_embeddings_come_from_the_same_rows(model):
    hidden = torch.randn(5, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    executor = Models(model, {}).engine(model_impl="native").runner.executor
    assert torch.allclose(executor.logits(hidden), model.logits(hidden), atol=1e-4)


@needs_library
def test_released_weights_still_compute(tmp_path):
    tiny(tmp_path, "llama")
    expected = run(Models(load_model(tmp_path), {}).engine(model_impl="native"), [Job((1, 2, 3))])
    model = load_model(tmp_path)
    pack_weights(model, release=True)
    linears = [module for module in model.modules() if isinstance(module, Linear)]
    assert all(module.weight.numel() == 0 for module in linears)
    assert run(Models(model, {}).engine(model_impl="native"), [Job((1, 2, 3))]) == expected


@needs_library
def test_a_head_that_is_the_embedding_table_stays(tmp_path):
    tiny(tmp_path, "llama", tie_word_embeddings=True)
    expected = run(Models(load_model(tmp_path), {}).engine(model_impl="native"), [Job((1, 2, 3))])
    model = load_model(tmp_path)
    pack_weights(model, release=True)
    pack_weights(model, release=True)  # a second look finds all packed
    assert model.embedding.tokens.weight.shape[0] == VOCAB_SIZE
    assert model.head.weight is model.embedding.tokens.weight
    assert run(Models(model, {}).engine(model_impl="native"), [Job((1, 2, 3))]) == expected


def recorded(engine, jobs):
    """What computes the engine's passes, and the batches of these jobs."""
    batches = []
    compute = one_by_one(engine).runner.executor.run
    engine.runner.executor.run = lambda batch, *more: batches.append(batch) or compute(batch, *more)
    for job in jobs:
        run(engine, [job])
    return compute, batches


@needs_library
def test_what_lies_outside_the_model_or_the_pools_is_refused(tmp_path):
    tiny(tmp_path, "llama")
    engine = Models(load_model(tmp_path), {}).engine(model_impl="native")
    compute, batches = recorded(engine, [Job((1, 2, 3))])
    batch, store = batches[0], engine.runner.groups[0].store
    pages = len(store.pools(0)[0])
    for name, limit in (
        ("token_ids", VOCAB_SIZE),
        ("positions", 10**6),
        ("cells", pages * store.page_size),
        ("page_table", pages),
    ):
        for value in (limit, -1):
            numbers = np.array(getattr(batch, name))
            numbers.reshape(-1)[0] = value
            with pytest.raises(IndexError):
                compute(replace(batch, **{name: numbers}), ())


@needs_library
@pytest.mark.parametrize("options", [{}, dynamic()], ids=["one regime", "regimes"])
def test_a_pass_leaves_nothing_to_the_next(options, tmp_path):
    """Of few or many rows and logits, turned by one regime's angles or another's: as a fresh executor computes it."""
    tiny(tmp_path, "llama", **options)
    models = Models(load_model(tmp_path), {})
    engine = models.engine(model_impl="native", max_num_batched_tokens=64)
    compute, batches = recorded(engine, [Job(tuple(random_tokens(count, seed=count))) for count in (2, 41, 3)])
    executor = NativeExecutor(models.target, engine.runner.executor.layers)
    assert max(len(batch.token_ids) for batch in batches) > 40 > min(len(batch.token_ids) for batch in batches)
    for batch in [*batches[::4], *batches[::-4]]:
        for rows in (batch.logit_rows, np.arange(len(batch.token_ids)), batch.logit_rows[:0]):
            wanted = replace(batch, logit_rows=rows)
            fresh = NativeExecutor(models.target, executor.layers).run(wanted, TAPS)
            expected = [part.clone() for part in (fresh.logits, fresh.hidden, fresh.features)]
            for found in (executor.run(wanted, TAPS), compute(wanted, TAPS)):
                assert len(found.logits) == len(rows)
                for mine, other in zip((found.logits, found.hidden, found.features), expected, strict=True):
                    assert torch.equal(mine, other)


def test_what_native_kernels_cannot_compute_is_computed_in_torch(tmp_path):
    tiny(tmp_path, "llama")
    double = load_model(tmp_path, dtype=torch.float64)
    if library.reason() is None:
        assert "float64" in obstacle(double, CPU)
    assert obstacle(double, CPU) is not None
    assert resolve_impl(Choice(), double, CPU) == "torch"
    with pytest.raises(ConfigError, match='Set model_impl to "auto"'):
        resolve_impl(Choice(model_impl="native"), double, CPU)
    with pytest.raises(ConfigError, match="model_impl"):
        resolve_impl(Choice(model_impl="cuda-graphs"), double, CPU)


@needs_library
def test_a_torch_backend_means_torch(tmp_path):
    tiny(tmp_path, "llama")
    single = load_model(tmp_path)
    assert resolve_impl(Choice(), single, CPU) == "native"
    assert resolve_impl(Choice(attention_backend="sdpa"), single, CPU) == "torch"


def test_without_the_library_torch_computes(tmp_path, monkeypatch):
    monkeypatch.setenv(library.VARIABLE, library.OFF)
    library.reload()
    try:
        tiny(tmp_path, "llama")
        single = load_model(tmp_path)
        assert resolve_impl(Choice(), single, CPU) == "torch"
        assert library.VARIABLE in obstacle(single, CPU)
    finally:
        monkeypatch.undo()
        library.reload()
