"""Bytes and operations counted in real passes, against sums done by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from paceline.benchmark.counting import KernelCounter, touched
from paceline.benchmark.drive import DECODE, PREFILL, drive
from paceline.benchmark.in_process import EngineSide, Workload
from paceline.benchmark.traffic import ATTENTION, EMBEDDING, LINEAR, OTHER, kernel_traffic
from paceline.benchmark.workloads import synthetic
from paceline.core.call import CallOptions
from paceline.core.params import SamplingParams

ITEM = 8
"""Bytes of a float64 or int64."""
HIDDEN, HEADS, KV_HEADS, DIM, MLP, VOCAB, LAYERS = 32, 4, 2, 8, 48, 320, 2
"""Of the tiny checkpoint."""


def counted(call, *, inference=True):
    counter = KernelCounter()
    counter.phase = "it"
    with torch.inference_mode(inference), counter:
        call()
    return counter.report()["it"]


@pytest.mark.parametrize("inference", [True, False])
def test_single_kernels_by_hand(inference):
    x, w, b = torch.ones(3, 4), torch.ones(5, 4), torch.ones(5)
    linear = counted(lambda: functional.linear(x, w), inference=inference)[LINEAR]
    assert linear == {"num_calls": 1, "num_bytes": 4 * (12 + 20 + 15), "num_flops": 2 * 3 * 4 * 5}
    biased = counted(lambda: functional.linear(x, w, b), inference=inference)[LINEAR]
    assert biased == {"num_calls": 1, "num_bytes": 4 * (12 + 20 + 15 + 5), "num_flops": 2 * 3 * 4 * 5}
    q, k = torch.ones(1, 2, 3, 8), torch.ones(1, 2, 7, 8)
    attention = counted(lambda: functional.scaled_dot_product_attention(q, k, k), inference=inference)[ATTENTION]
    assert attention["num_flops"] == 2 * 2 * (2 * 3 * 7 * 8)
    assert attention["num_bytes"] == 4 * (48 + 112 + 112 + 48)
    table, ids = torch.ones(100, 4), torch.tensor([1, 2, 3])
    lookup = counted(lambda: functional.embedding(ids, table), inference=inference)[EMBEDDING]
    assert lookup == {"num_calls": 1, "num_bytes": 3 * 8 + 2 * 4 * 12, "num_flops": 0}


def test_views_and_gathers_count_what_they_move():
    pool, pages = torch.ones(1000, 4), torch.tensor([5, 6])
    assert counted(lambda: pool.view(500, 8).transpose(0, 1))[OTHER]["num_bytes"] == 0
    assert counted(lambda: pool[pages])[OTHER]["num_bytes"] == 16 + 2 * 4 * 8
    assert counted(lambda: pool.index_put_((pages,), torch.zeros(2, 4)))[OTHER]["num_bytes"] >= 16 + 2 * 4 * 8
    assert touched([torch.ones(4, 1).expand(4, 100), torch.ones(2)]) == 4 * (4 + 2)


def linear(rows, inside, outside):
    return ITEM * (rows * inside + inside * outside + rows * outside), 2 * rows * inside * outside


def pass_by_hand(rows, logit_rows, slots):
    """(bytes, operations) of one pass of the tiny model over one request: its linears, attention and embedding."""
    heads = (HEADS + 2 * KV_HEADS) * DIM
    per_layer = [
        linear(rows, HIDDEN, heads),
        linear(rows, HEADS * DIM, HIDDEN),
        linear(rows, HIDDEN, 2 * MLP),
        linear(rows, MLP, HIDDEN),
        _attention(rows, slots),
    ]
    parts = [*per_layer * LAYERS, linear(logit_rows, HIDDEN, VOCAB), (ITEM * rows + 2 * ITEM * rows * HIDDEN, 0)]
    return tuple(sum(part[index] for part in parts) for index in (0, 1))


def _attention(rows, slots):
    fold = HEADS // KV_HEADS
    mask = 0 if rows == 1 else fold * rows * slots  # a byte each; a single row sees everything
    moved = ITEM * (2 * HEADS * rows * DIM + 2 * KV_HEADS * slots * DIM) + mask
    return moved, 4 * HEADS * rows * slots * DIM


@pytest.fixture(scope="module")
def plain(load):
    return load({"speculative_config": None})


def test_a_whole_answer_by_hand(plain):
    """A prompt of 10 tokens, then 4 tokens one by one: 5 passes over known shapes."""
    shape = Workload(name="x", dialogues=lambda _: synthetic(1, 10, vocabulary=range(3, 320), seed=0), output_length=5)
    found = EngineSide(plain, shape, label="plain", speculate=False, seed=0).count()
    assert found["num_steps"] == {PREFILL: 1, DECODE: 4}
    assert kernel_traffic(found["traffic"][PREFILL]) == pass_by_hand(10, 1, 10)
    steps = [pass_by_hand(1, 1, 11 + step) for step in range(4)]
    assert kernel_traffic(found["traffic"][DECODE]) == tuple(sum(step[i] for step in steps) for i in (0, 1))
    for kind in (LINEAR, ATTENTION, EMBEDDING, OTHER):
        assert found["traffic"][DECODE][kind]["num_calls"] > 0
    weights = sum(one.numel() for one in plain.engine.runner.model.parameters()) * ITEM
    assert found["memory"]["target_weights"] == weights
    assert found["memory"]["peak_memory"] is None or found["memory"]["peak_memory"] > weights
    for part in found["overhead"].values():
        assert 0 < part["outside_kernels"] < part["seconds"]


def test_counting_and_timing_leave_the_engine_as_it_was(plain):
    shape = Workload(name="x", dialogues=lambda _: synthetic(2, 6, vocabulary=range(3, 320), seed=1), output_length=4)
    model, pipeline = plain.engine.runner.model, plain.engine.pipeline
    EngineSide(plain, shape, label="plain", speculate=False, seed=0).count()
    assert not model._forward_hooks
    assert not model.head._forward_pre_hooks
    assert "sample" not in vars(pipeline)
    assert not plain.engine.has_work


def test_overhead_is_what_a_slow_step_adds(plain, monkeypatch):
    """A planted pause in planning is overhead, the same pause inside the model is not."""
    import time  # noqa: PLC0415

    shape = Workload(name="x", dialogues=lambda _: synthetic(1, 4, vocabulary=range(3, 320), seed=1), output_length=4)
    side = EngineSide(plain, shape, label="plain", speculate=False, seed=0)
    pause, steps = 0.02, 4

    def outside():
        return sum(part["outside_kernels"] for part in side._overhead().values())

    plan = plain.engine.scheduler.plan
    monkeypatch.setattr(plain.engine.scheduler, "plan", lambda *rounds: (time.sleep(pause), plan(*rounds))[1])
    assert outside() >= pause * steps
    monkeypatch.undo()
    norm = plain.engine.runner.model.norm
    hook = norm.register_forward_hook(lambda *_: time.sleep(pause))
    with_pause = side._overhead()
    hook.remove()
    assert sum(part["seconds"] - part["outside_kernels"] for part in with_pause.values()) >= pause * steps


def test_a_drive_that_fails_gives_everything_back(plain):
    dialogues = synthetic(2, 6, vocabulary=range(3, 320), seed=1)
    params = [SamplingParams(max_tokens=4, temperature=0.0)] * 2

    def failing(_phase):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        drive(plain, dialogues, params, CallOptions(), around=failing)
    assert not plain.engine.has_work
    assert plain.engine.cache.counts().referenced == 0
