"""Bytes and operations of native ops, against the tensors that the calls were given."""

from __future__ import annotations

import ctypes
import threading

import pytest
import torch

from paceline.benchmark import native_counting
from paceline.benchmark.counting import KernelCounter, touched
from paceline.benchmark.native_counting import count_operations, native_counts
from paceline.benchmark.report import NOT_COUNTED, _notes
from paceline.benchmark.traffic import ATTENTION, LINEAR, OTHER, UNCOUNTED, Traffic
from paceline.kernels.native import gate, heads, norm, read, rotary, structures
from paceline.kernels.native.attention import attend
from paceline.kernels.native.heads import Angles, HeadNorms
from paceline.kernels.native.linear import arguments, linear
from paceline.kernels.native.packing import kinds, pack
from paceline.kernels.native.structures import Code
from tests.support.layouts import chunk, decoded, lay_out, tree
from tests.support.native import needs_library


def counted(call) -> dict[str, Traffic]:
    counter = KernelCounter()
    with counter:
        call()
    return {kind: one for kind, one in counter.by_phase.get("", {}).items() if one.num_bytes}


def parts(packed) -> list[torch.Tensor]:
    return [one for one in (packed.weight, packed.scale, packed.sums, packed.bias) if one is not None]


@pytest.mark.parametrize("kind", list(kinds))
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inputs", "outputs", "group"), [(64, 32, 32), (67, 45, 64), (200, 1, 128)])
def test_a_linear_reads_its_packed_weights_once(kind, bias, inputs, outputs, group):
    packed = pack(torch.randn(outputs, inputs), kind, bias=torch.randn(outputs) if bias else None, group_size=group)
    for rows, dtype in ((1, torch.float32), (100, torch.bfloat16)):
        x, out = torch.randn(rows, inputs).to(dtype), torch.empty(rows, outputs)
        steps = arguments(x, packed, out)
        found = count_operations([(Code.LINEAR, ctypes.addressof(steps))])
        expected = Traffic(1, touched([x, out, *parts(packed)]), 2 * rows * inputs * outputs)
        assert found == {LINEAR: expected}


@needs_library
def test_calls_are_counted_where_they_happen():
    x, y, out, weight = (torch.randn(shape) for shape in ((3, 32), (3, 32), (3, 32), (32,)))
    packed = pack(torch.randn(16, 32), "fp32")
    product = torch.empty(3, 16)
    assert counted(lambda: linear(x, packed, out=product))[LINEAR].num_bytes == touched([x, packed.weight, product])
    calls = {
        touched([x, y, out]): lambda: gate.activate(x, "silu", up=y, out=out),
        touched([x, out]): lambda: gate.activate(x, "silu", out=out),
        touched([x, y, y, out, weight]): lambda: norm.rms_norm(x, weight, epsilon=1e-5, residual=y, out=out),
        touched([x, out, weight, weight]): lambda: norm.layer_norm(x, weight, weight, epsilon=1e-5, out=out),
    }
    for expected, call in calls.items():
        assert counted(call)[OTHER].num_bytes == expected
        assert counted(call)[OTHER].num_flops == 0
    x, turned, angles = torch.randn(3, 4, 8), torch.empty(3, 4, 8), torch.randn(3, 6)
    found = counted(lambda: rotary.rotate(x, angles, angles, out=turned))[OTHER]
    assert found.num_bytes >= touched([x, turned, angles, angles])
    words = torch.ones(8 * read.UNIT, dtype=torch.int32)
    assert counted(lambda: read.read_sum(words, out=torch.empty(1, dtype=torch.int32)))[OTHER].num_bytes >= words.nbytes


@needs_library
def test_attention_reads_the_cells_that_its_rows_see():
    q, kv = torch.randn(4, 8), torch.randn(50, 2, 2, 8)
    requests = [decoded(q, kv[:30]), chunk(q, kv, rows=5, behind=0, window=20), tree(q, kv[:9], [-1, 0, 0], 2, None)]
    rows, pools, seen = lay_out(requests, page_size=16)
    found = counted(lambda: attend(rows, pools, seen, scale=1.0))[ATTENTION]
    cells, pairs = 30 + 24 + 10, 30 + 5 * 20 + 8 + 9 + 9
    assert found.num_bytes == 2 * rows.nbytes + 2 * cells * 2 * 8 * 4
    assert found.num_flops == 4 * pairs * 4 * 8


def test_heads_are_read_and_written_once():
    pools, cells, angles = (torch.zeros(4, 2, 4, 8), torch.zeros(4, 2, 4, 8)), torch.arange(3), torch.randn(3, 6)
    qkv, out, norm = torch.randn(3, 64), torch.empty(3, 32), torch.randn(8)
    written = [torch.empty(3, 2, 8)] * 2
    norms = HeadNorms(norm, norm, 1e-6)
    one = heads.arguments(qkv, out, pools, cells, angles=Angles(angles, angles), norms=norms)
    found = count_operations([(Code.HEADS, ctypes.addressof(one))])[OTHER]
    assert found.num_bytes == sum(one.nbytes for one in (qkv, out, cells, angles, angles, norm, norm, *written))


@needs_library
def test_only_this_threads_calls_count_and_only_while_asked():
    x, packed = torch.randn(3, 32), pack(torch.randn(16, 32), "fp32")
    other = threading.Thread(target=lambda: linear(x, packed))
    assert LINEAR not in counted(lambda: (other.start(), other.join()))
    before = counted(lambda: linear(x, packed))
    linear(x, packed)
    assert counted(lambda: linear(x, packed)) == before


def test_every_op_says_how_it_is_counted():
    assert set(native_counts) == set(Code)


def test_an_op_that_nobody_counts_is_told(monkeypatch):
    """What the report would say if somebody added an op and no count."""
    monkeypatch.setattr(native_counting, "native_counts", {})
    one = structures.ReadArgs(None, 128, None)
    found = count_operations([(Code.READ, ctypes.addressof(one))] * 3)
    assert found == {UNCOUNTED: Traffic(3, 0, 0)}
    point = {"blocks": [], "counted": {"subject": {"traffic": {"decode": {UNCOUNTED: {}}}}}}
    assert _notes(point) == [NOT_COUNTED]
    assert _notes({"blocks": [], "counted": {"subject": {"traffic": {"decode": {LINEAR: {}}}}}}) == []
