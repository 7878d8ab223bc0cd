"""Models of any sizes compute natively what they compute in torch, and touch no memory that is not theirs.

``PACELINE_SHAPES`` sets how many are drawn, ``PACELINE_SHAPES_SEED`` from where on; under AddressSanitizer
(``scripts/sanitize_kernels.sh``) each of them shows whether a kernel reads or writes beside what it was given.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
import torch

from paceline.core.errors import ConfigError
from paceline.core.layer import LayerSpec
from paceline.kernels.native import library
from paceline.kernels.native.pools import MOST_CHANNELS
from paceline.models import load_model
from paceline.runner import Choice, resolve_impl
from paceline.runner.native import obstacle
from paceline.runner.native.sizes import size_obstacle
from tests.runner.shapes import CPU, distance, draw, passes
from tests.support.calls import begin, greedy, make, tokens_of
from tests.support.checkpoints import tiny_gpt2, tiny_llama
from tests.support.engines import Models, run
from tests.support.native import needs_library, on_threads

COUNT = int(os.environ.get("PACELINE_SHAPES", "16"))
SEED = int(os.environ.get("PACELINE_SHAPES_SEED", "1"))


@pytest.fixture
def default_level() -> Iterator[None]:
    """The test may choose another."""
    yield
    library.reload()


@needs_library
@pytest.mark.parametrize("number", range(COUNT))
def test_passes_are_those_of_torch(number, tmp_path):
    shape = draw(SEED, number)
    shape.save(tmp_path)
    expected_tokens, expected = passes(shape.load(tmp_path, torch.float32), "torch", shape)
    tokens, found = passes(shape.load(tmp_path, shape.dtype), "native", shape)
    compared = 0
    for ours, theirs in zip(found, expected, strict=False):
        if ours.batch.token_ids.tolist() != theirs.batch.token_ids.tolist():
            break  # rounding made another token the best
        assert ours.logits.isfinite().all(), shape
        assert distance(ours.logits, theirs.logits) < shape.tolerance, shape
        compared += 1
    assert compared > 0
    if shape.tolerance < 2e-3:
        assert (tokens, compared) == (expected_tokens, len(found)), shape


@needs_library
@pytest.mark.usefixtures("default_level")
@pytest.mark.parametrize("number", range(COUNT))
def test_texts_are_those_of_calls_alone(number, tmp_path):
    """With sampling among the native ops, several passes a step, drafts, and calls beside one another."""
    shape = draw(SEED + 1, number)
    shape.save(tmp_path)
    models = Models(shape.load(tmp_path, shape.dtype), {})
    library.select(shape.level)
    alone = [run(models.engine(model_impl="native", **shape.options), [job])[0] for job in shape.jobs]
    assert all(len(text) == job.params.max_tokens for (text,), job in zip(alone, shape.jobs, strict=True)), shape
    with on_threads(shape.num_threads):
        for speculation in (None, shape.speculation):
            engine = models.engine(speculation, model_impl="native", **{**shape.options, "block_size": 16})
            assert run(engine, shape.jobs) == alone, shape


@needs_library
@pytest.mark.parametrize("head_dim", [258, 288, 512, 600, MOST_CHANNELS])
def test_large_heads_are_computed_natively(head_dim, tmp_path):
    tiny_llama(tmp_path, head_dim=head_dim, num_heads=2, num_kv_heads=1)
    prompt = [5, 6, 7, 8, 9]
    expected = tokens_of(make(tmp_path, dtype="float32", model_impl="torch").generate([prompt], greedy()))
    assert tokens_of(make(tmp_path, dtype="float32", model_impl="native").generate([prompt], greedy())) == expected


@needs_library
def test_larger_heads_are_computed_in_torch_and_the_log_says_why(tmp_path, caplog):
    head_dim = MOST_CHANNELS + 1
    tiny_gpt2(tmp_path, num_heads=1, hidden=head_dim, intermediate=8, layers=1)
    model = load_model(tmp_path)
    assert str(head_dim) in obstacle(model, CPU)
    assert resolve_impl(Choice(), model, CPU) == "torch"
    with caplog.at_level(logging.WARNING):
        llm = make(tmp_path, dtype="float32")
    assert f"not {head_dim}" in caplog.text
    assert len(llm.generate([[5, 6]], greedy(ignore_eos=True))[0].outputs[0].token_ids) == 12
    for options in ({"model_impl": "native"}, {"attention_backend": "native"}):
        with pytest.raises(ConfigError, match=f"{MOST_CHANNELS} channels"):
            make(tmp_path, dtype="float32", **options)


@needs_library
def test_heads_that_cannot_share_have_an_obstacle(tmp_path):
    tiny_llama(tmp_path)
    model = load_model(tmp_path)
    model.layer_specs = (LayerSpec(num_heads=4, num_kv_heads=3, head_dim=8, scale=1.0),)
    assert "4 query heads cannot share 3" in str(size_obstacle(model))


@needs_library
@pytest.mark.parametrize("part", ["qkv", "out", "gate_up", "norm", "head"])
def test_parts_that_do_not_fit_one_another_are_no_reads_beside_them(part, tmp_path):
    """A family that builds such a model is at fault; kernels that trusted it would read what is not theirs."""
    tiny_llama(tmp_path)
    model = load_model(tmp_path)
    block = model.blocks[1]
    if part == "norm":
        block.mlp_norm.weight = torch.nn.Parameter(torch.ones(31))
    else:
        linear = {"qkv": block.attention.qkv, "out": block.attention.out, "gate_up": block.mlp.gate_up}
        chosen = linear.get(part, model.head)
        narrow = chosen.weight[:-8, :].clone() if part == "qkv" else chosen.weight[:, :-8].clone()
        chosen.weight = torch.nn.Parameter(narrow)
    engine = Models(model, {}).engine(model_impl="native")
    begin(engine, [5, 6, 7], greedy())
    with pytest.raises(ValueError, match="numbers a row, where"):
        engine.step()
