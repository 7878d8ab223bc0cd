"""Every backend equals the spelled-out one, over trees, windows, soft caps, chunks and ragged batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from paceline.attention import LayerMap, attention_backends
from paceline.cache import DenseStore, KVGroup, PageAllocator
from paceline.core.errors import ConfigError
from paceline.core.layer import LayerSpec
from paceline.core.params import SamplingParams
from paceline.core.request import Group, Request
from paceline.core.seats import Seats
from paceline.core.step import DraftTrees, StepPlan
from paceline.kernels.native import library
from paceline.runner import verify_rows
from tests.support.native import needs_library

SPECS = {
    "mha": LayerSpec(num_heads=4, num_kv_heads=4, head_dim=8, scale=0.3),
    "gqa": LayerSpec(num_heads=6, num_kv_heads=2, head_dim=8, scale=0.3),
    "mqa_window": LayerSpec(num_heads=4, num_kv_heads=1, head_dim=8, scale=0.3, window=6),
    "softcap": LayerSpec(num_heads=4, num_kv_heads=2, head_dim=8, scale=1.0, softcap=2.0),
}

NATIVE = pytest.param("native", marks=needs_library)
BACKENDS = [NATIVE if name == "native" else name for name in attention_backends if name != "reference"]
WIDEST = {"native": torch.float32}
"""What a backend computes in, where that is not float64."""


def batch_of(group: KVGroup, seats: Seats, random: np.random.Generator, shape: str):
    """Three requests in the shape asked for, their earlier slots already filled."""
    requests = []
    for length in (9, 21, 14):
        whole = Group("g", list(range(1, length + 1)), SamplingParams())
        request = Request("r", whole, 0, 0, frozenset(), 8)
        seats.join(request)
        requests.append(request)
    own = np.array([request.seat for request in requests], dtype=np.int32)
    lengths = {"decode": [1, 1, 1], "tree": [1, 1, 1], "chunks": [9, 5, 14], "mixed": [1, 12, 3]}[shape]
    known = np.array(lengths, dtype=np.int32)
    nodes = {"decode": 0, "tree": 70, "chunks": 0, "mixed": 5}[shape]
    counts = np.array([nodes, 0 if shape == "mixed" else nodes, max(0, nodes - 2)], dtype=np.int32)
    parents = np.array([[random.integers(-1, node) if node else -1 for node in range(nodes)] for _ in own])
    drafts = DraftTrees(
        random.integers(0, 50, (3, nodes)).astype(np.int32), parents.astype(np.int32).reshape(3, -1), counts
    )
    plan = StepPlan(requests, own, seats.num_tokens[own] - known, known, counts)
    for seat, end in zip(own.tolist(), (plan.end + counts).tolist(), strict=True):
        assert group.reserve(seat, 0, end)
    return verify_rows(plan, drafts, seats, [group]).batch


@pytest.mark.parametrize("shape", ["decode", "tree", "chunks", "mixed"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_backend_equals_the_reference(backend: str, spec: LayerSpec, shape: str) -> None:
    outputs, dtype = [], WIDEST.get(backend, torch.float64)
    for name in ("reference", backend):
        random = np.random.default_rng(0)
        torch.manual_seed(0)
        store = DenseStore([spec], num_pages=80, page_size=4, dtype=dtype, device="cpu")
        group = KVGroup("g", store, PageAllocator(79), num_seats=4, max_slots=128, window=spec.window)
        k, v = torch.randn(2, 79 * 4, spec.num_kv_heads, 8).to(dtype)
        store.write(0, k, v, *_all_cells(79, 4))
        batch = batch_of(group, Seats(4, 128), random, shape)
        attention = attention_backends[name](layers_of(spec, store), torch.device("cpu"))
        attention.plan(batch)
        rows = len(batch.token_ids)
        q, k, v = (torch.randn(rows, heads, 8).to(dtype) for heads in (spec.num_heads, *[spec.num_kv_heads] * 2))
        outputs.append(attention.attend(0, q, k, v))
    expected, found = outputs
    assert torch.allclose(expected, found, atol=1e-12 if dtype is torch.float64 else 2e-6)


def layers_of(spec: LayerSpec, store: DenseStore) -> LayerMap:
    return LayerMap(specs=[spec], stores=[store], group_of=[0], index_in_group=[0])


def _all_cells(num_pages: int, page_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    cells = torch.arange(page_size, (num_pages + 1) * page_size)
    return cells // page_size, cells % page_size


@needs_library
@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "message"),
    [
        ("cuda", torch.float32, 8, "cuda"),
        ("cpu", torch.float64, 8, "float64"),
        ("cpu", torch.float32, 1032, "1 to 1024 channels"),
    ],
)
def test_native_refuses_what_it_cannot_run(device, dtype, head_dim, message) -> None:
    spec = replace(SPECS["gqa"], head_dim=head_dim)
    layers = layers_of(spec, DenseStore([spec], num_pages=3, page_size=4, dtype=dtype, device="cpu"))
    with pytest.raises(ConfigError, match=rf"{message}(.|\n)*sdpa"):
        attention_backends["native"](layers, torch.device(device))


def test_native_says_why_there_are_no_kernels(monkeypatch) -> None:
    monkeypatch.setattr(library, "reason", lambda: library.Absence("they were not built", "Build them."))
    with pytest.raises(ConfigError, match=r"not built\nBuild them. Or: .*sdpa"):
        attention_backends["native"](LayerMap([], [], [], []), torch.device("cpu"))


def test_the_comparison_can_fail() -> None:
    def forgetful(layers: LayerMap, device: torch.device):
        return attention_backends["sdpa"](replace(layers, specs=[replace(layers.specs[0], softcap=None)]), device)

    attention_backends.add("forgets_soft_caps")(forgetful)
    with pytest.raises(AssertionError):
        test_backend_equals_the_reference("forgets_soft_caps", SPECS["softcap"], "decode")
