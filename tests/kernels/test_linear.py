"""A row's result in a packed linear is right, and has the same bits alone, among others, and at any thread count."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from paceline.core.errors import ConfigError
from paceline.kernels import reference
from paceline.kernels.native.linear import linear
from paceline.kernels.native.packing import kinds, pack, unpack
from tests.support.native import LEVELS, check_rows_are_alone, needs_library, on_threads, same_bits

KINDS = list(kinds)
at_every_level = pytest.mark.parametrize("level", LEVELS, indirect=True)
of_every_kind = pytest.mark.parametrize("kind", KINDS)
SHAPES = [(1, 1, 1), (2, 3, 16), (5, 33, 50), (3, 160, 15), (9, 257, 97), (70, 1041, 130), (65, 2100, 37)]


def random_tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@at_every_level
@of_every_kind
def test_equals_the_reference(level, kind):
    for seed, (rows, inputs, outputs) in enumerate(SHAPES):
        x, weight = random_tensor(rows, inputs, seed=seed), random_tensor(outputs, inputs, seed=seed + 50)
        packed = pack(weight, kind, bias=random_tensor(outputs) if seed % 2 else None)
        expected = reference.linear(x, packed)
        torch.testing.assert_close(linear(x, packed), expected, rtol=2e-5, atol=2e-6 * inputs**0.5 * 10)


@at_every_level
def test_int8_has_the_bits_of_the_reference(level):
    for seed, (rows, inputs, outputs) in enumerate(SHAPES):
        x, weight = random_tensor(rows, inputs, seed=seed), random_tensor(outputs, inputs, seed=seed + 50)
        packed = pack(weight, "int8", bias=random_tensor(outputs))
        assert same_bits(linear(x, packed), reference.int8_linear(x, packed))


@at_every_level
@of_every_kind
def test_rows_are_alone(level, kind):
    packed = pack(random_tensor(37, 70), kind, bias=random_tensor(37))
    check_rows_are_alone(lambda rows: linear(rows, packed), random_tensor(70, 70, seed=1), range(1, 71))
    # So many inputs that they are taken in several chunks when there are many rows, and rows for several rounds.
    packed = pack(random_tensor(130, 2100), kind)
    check_rows_are_alone(lambda rows: linear(rows, packed), random_tensor(135, 2100, seed=1), [1, 3, 7, 9, 17, 66, 129])


@at_every_level
@of_every_kind
def test_threads_cannot_be_seen(level, kind):
    packed = pack(random_tensor(150, 300), kind, bias=random_tensor(150))
    x = random_tensor(70, 300, seed=1)
    for count in (1, 2, 5, 8, 66, 70):
        with on_threads(1):
            alone = linear(x[:count], packed)
        for threads in (2, 3):
            with on_threads(threads):
                assert same_bits(linear(x[:count], packed), alone)


@needs_library
def test_callers_at_the_same_time_get_the_same_bits():
    packed = pack(random_tensor(150, 300), "fp32")
    rows = [random_tensor(120, 300, seed=seed) for seed in range(8)]  # others', if they shared memory, would show
    with on_threads(2), ThreadPoolExecutor(4) as pool:
        expected = [linear(x, packed) for x in rows]
        found = list(pool.map(lambda number: linear(rows[number % 8], packed), range(160)))
    assert all(same_bits(one, expected[number % 8]) for number, one in enumerate(found))


def test_the_check_finds_rows_that_see_each_other():
    weight = random_tensor(9, 40)

    def planted(rows: torch.Tensor) -> torch.Tensor:
        parts = [rows] if len(rows) == 1 else rows.split(20, 1)
        return sum(functional.linear(part, weight[:, : part.shape[1]]) for part in parts)

    with pytest.raises(AssertionError):
        check_rows_are_alone(planted, random_tensor(12, 40), range(1, 13))


@at_every_level
@of_every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_go_in_and_out(level, kind, dtype):
    packed = pack(random_tensor(33, 100).to(dtype), kind, bias=random_tensor(33).to(dtype))
    x = random_tensor(6, 100, seed=1).to(dtype)
    assert same_bits(linear(x, packed), linear(x.float(), packed).to(dtype))
    wide = linear(x, packed, out=torch.empty(6, 33))
    assert same_bits(wide, linear(x.float(), packed))


@at_every_level
def test_rounding_to_half_types_is_that_of_torch(level):
    values = torch.tensor([0.0, -0.0, 1e-8, 5.9e-8, 3e-8, 6e-5, 6.1e-5, 1 + 2**-9, 65519.0, 65520.0, 1e9, -1e39])
    values = torch.cat((values, random_tensor(300) * torch.logspace(-9, 6, 300), torch.tensor([torch.nan])))
    identity = pack(torch.ones(1, 1), "fp32")
    for dtype in (torch.bfloat16, torch.float16):
        found = linear(values[:, None], identity, out=torch.empty(len(values), 1, dtype=dtype))[:, 0]
        expected = (values + 0.0).to(dtype)  # a sum that starts at zero has no minus zero
        assert same_bits(found[:-1], expected[:-1])
        assert found[-1].isnan()
        widened = linear(expected[:-1, None], identity, out=torch.empty(len(values) - 1, 1))[:, 0]
        assert same_bits(widened, expected[:-1].float() + 0.0)


@at_every_level
@of_every_kind
def test_strides(level, kind):
    packed = pack(random_tensor(20, 50), kind)
    wide = random_tensor(9, 120, seed=1)
    for x in (wide[:, 3:53], wide[::3, 70:], wide[:1, :50].expand(4, 50)):
        room = torch.full((9, 40), 7.0)
        expected = linear(x.contiguous(), packed)
        found = linear(x, packed, out=room[: len(x), 5:25])
        assert same_bits(found, expected)
        assert (room[:, :5] == 7).all()
        assert (room[:, 25:] == 7).all()
        assert (room[len(x) :] == 7).all()


@at_every_level
@of_every_kind
def test_a_row_that_is_not_finite_spoils_no_other(level, kind):
    packed = pack(random_tensor(20, 50), kind)
    x = random_tensor(5, 50, seed=1)
    expected = linear(x, packed)
    x[1, 7], x[3, 2] = torch.nan, torch.inf
    found = linear(x, packed)
    assert same_bits(found[[0, 2, 4]], expected[[0, 2, 4]])
    assert not found[[1, 3]].isfinite().any()


@at_every_level
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_rows_and_weights_of_any_size(level, kind):
    weight = random_tensor(20, 64)
    weight[3] = 0
    packed = pack(weight, kind)
    x = random_tensor(6, 64, seed=1) * torch.tensor([0.0, 1e-38, 1e-29, 1e-3, 1e20, 1e-42])[:, None]
    torch.testing.assert_close(linear(x, packed), reference.linear(x, packed), rtol=1e-5, atol=1e-34)


@needs_library
def test_no_rows():
    assert linear(torch.empty(0, 8), pack(random_tensor(3, 8), "fp32")).shape == (0, 3)


@pytest.mark.parametrize(("kind", "most"), [("fp32", 0), ("bf16", 2**-9), ("fp16", 2**-12), ("int8", 1 / 250)])
def test_packing_keeps_the_weights(kind, most):
    weight = random_tensor(37, 101)
    error = (unpack(pack(weight, kind)) - weight).abs().amax()
    assert error <= most * weight.abs().amax()


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_int4_groups(group_size):
    weight = random_tensor(37, 200) * torch.logspace(-3, 3, 200)
    packed = pack(weight, "int4", group_size=group_size)
    found = unpack(packed)
    for first in range(0, 200, group_size):
        group, error = weight[:, first : first + group_size], (found - weight)[:, first : first + group_size]
        assert (error.abs().amax(1) <= group.abs().amax(1) / 7.9).all()
    assert packed.weight.nbytes == 64 * -(-200 // group_size) * (group_size // 2 + 2)


X, W = random_tensor(4, 8), random_tensor(3, 8)
BAD_CALLS = {
    "no tensor": (lambda: linear([1.0], pack(W, "fp32")), TypeError, "must be a tensor"),
    "double": (lambda: linear(X.double(), pack(W, "fp32")), TypeError, "float64"),
    "integers": (lambda: linear(X.int(), pack(W, "fp32")), TypeError, "int32"),
    "meta": (lambda: linear(X.to("meta"), pack(W, "fp32")), ValueError, "meta"),
    "sparse": (lambda: linear(X.to_sparse(), pack(W, "fp32")), ValueError, "sparse"),
    "width": (lambda: linear(X[:, :7], pack(W, "fp32")), ValueError, r"\[any, 8\]"),
    "one row": (lambda: linear(X[0], pack(W, "fp32")), ValueError, "shape"),
    "three dimensions": (lambda: linear(X[None], pack(W, "fp32")), ValueError, "shape"),
    "columns": (lambda: linear(random_tensor(8, 4).t(), pack(W, "fp32")), ValueError, "contiguous"),
    "not packed": (lambda: linear(X, W), TypeError, r"pack\(\)"),
    "out's shape": (lambda: linear(X, pack(W, "fp32"), out=torch.empty(4, 4)), ValueError, "out"),
    "out's type": (lambda: linear(X, pack(W, "fp32"), out=torch.empty(4, 3).double()), TypeError, "out"),
    "out's rows": (lambda: linear(X, pack(W, "fp32"), out=torch.empty(1, 3).expand(4, 3)), ValueError, "overlap"),
    "out is x": (lambda: linear(X, pack(W, "fp32"), out=X[:, :3]), ValueError, "share memory"),
    "kind": (lambda: pack(W, "int3"), ConfigError, "int3"),
    "empty": (lambda: pack(W[:0], "fp32"), ValueError, "nothing"),
    "bias": (lambda: pack(W, "fp32", bias=torch.zeros(4)), ValueError, "bias"),
    "group": (lambda: pack(W, "int4", group_size=48), ValueError, "group_size"),
    "not finite": (lambda: pack(W / 0, "int8"), ValueError, "not finite"),
    "huge": (lambda: pack(W * 1e9, "int4"), ValueError, "float16"),
    "long": (lambda: pack(torch.zeros(1, 65537), "int8"), ValueError, "65536"),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_input_raises(call, error, message):
    with pytest.raises(error, match=message):
        call()


PARTS = {"weight": torch.zeros(3, 8), "in_features": 600, "out_features": 90, "bias": torch.zeros(3), "group_size": 48}


@of_every_kind
@pytest.mark.parametrize("part", [*PARTS, "kind"])
def test_a_matrix_that_was_tampered_with_is_refused(kind, part):
    packed = pack(W, kind, bias=torch.zeros(3))
    parts = PARTS | {"kind": "int4" if kind == "int8" else "int8"}
    with pytest.raises((TypeError, ValueError)):
        replace(packed, **{part: parts[part]})
