"""Native norms, rotations and activations are right, and a row's bits do not depend on other rows or on threads."""

from __future__ import annotations

import pytest
import torch

from paceline.core.errors import ConfigError
from paceline.kernels import reference
from paceline.kernels.native.gate import activate, activations
from paceline.kernels.native.gather import gather
from paceline.kernels.native.norm import layer_norm, rms_norm
from paceline.kernels.native.rotary import rotate
from tests.support.native import LEVELS, check_rows_are_alone, needs_library, on_threads, same_bits

at_every_level = pytest.mark.parametrize("level", LEVELS, indirect=True)
in_half_types = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
SIZES = [1, 15, 16, 17, 100, 384, 1031]
EPSILON = 1e-5


def random_tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def angles(rows: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    radians = random_tensor(rows, size // 2, seed=7)
    return torch.cat((radians.cos(),) * 2, 1), torch.cat((-radians.sin(), radians.sin()), 1)


def rms(x: torch.Tensor, **options) -> torch.Tensor:
    return rms_norm(x, random_tensor(x.shape[1], seed=3), epsilon=EPSILON, **options)


def layer(x: torch.Tensor, **options) -> torch.Tensor:
    weight, bias = random_tensor(2, x.shape[1], seed=3)
    return layer_norm(x, weight, bias, epsilon=EPSILON, **options)


def turned(x: torch.Tensor) -> torch.Tensor:
    """Rows of two heads, whose angles come with the row so that rows can be taken in any order."""
    heads, cosine, sine = x.split((2 * 24, 16, 16), 1)
    return rotate(heads.unflatten(1, (2, 24)), cosine, sine)


def gated(x: torch.Tensor) -> torch.Tensor:
    return activate(x[:, :40], "silu", up=x[:, 40:])


OPERATIONS = {"rms_norm": rms, "layer_norm": layer, "rotary": turned, "gate": gated}
of_every_operation = pytest.mark.parametrize("name", OPERATIONS)


@at_every_level
@of_every_operation
def test_rows_are_alone(level, name):
    x = random_tensor(70, 80)
    check_rows_are_alone(OPERATIONS[name], x, range(1, 71))
    with on_threads(1):
        alone = OPERATIONS[name](x)
    for threads in (2, 3):
        with on_threads(threads):
            assert same_bits(OPERATIONS[name](x), alone)
            assert same_bits(OPERATIONS[name](x[:1]), alone[:1])


@at_every_level
@in_half_types
@of_every_operation
def test_half_types_are_rounded_once(level, dtype, name):
    x = random_tensor(9, 80).to(dtype)
    assert same_bits(OPERATIONS[name](x), OPERATIONS[name](x.float()).to(dtype))


@at_every_level
@of_every_operation
def test_a_row_that_is_not_finite_spoils_no_other(level, name):
    x = random_tensor(5, 80)
    expected = OPERATIONS[name](x)
    x[2, 3] = torch.nan
    found = OPERATIONS[name](x)
    assert same_bits(found[[0, 1, 3, 4]], expected[[0, 1, 3, 4]])
    assert found[2].isnan().any()


@at_every_level
@pytest.mark.parametrize("size", SIZES)
def test_norms_equal_the_reference(level, size):
    x, weight, bias = random_tensor(5, size) * 3 + 1, random_tensor(size, seed=1), random_tensor(size, seed=2)
    close = {"rtol": 2e-6, "atol": 2e-6}
    expected = reference.rms_norm(x, weight, epsilon=EPSILON)
    torch.testing.assert_close(rms_norm(x, weight, epsilon=EPSILON), expected, **close)
    for one in (bias, None):
        expected = reference.layer_norm(x, weight, one, epsilon=EPSILON)
        torch.testing.assert_close(layer_norm(x, weight, one, epsilon=EPSILON), expected, **close)


@at_every_level
@pytest.mark.parametrize("norm", [rms, layer])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_residual_becomes_the_sum(level, norm, dtype):
    x, residual = random_tensor(7, 50).to(dtype), random_tensor(7, 50, seed=1).to(dtype)
    total = residual + x
    found = norm(x, residual=residual)
    assert same_bits(residual, total)
    assert same_bits(found, norm(total))


@at_every_level
@pytest.mark.parametrize(("head_dim", "size"), [(2, 2), (24, 16), (64, 64), (80, 20), (128, 128), (37, 34)])
def test_rotations_equal_the_reference(level, head_dim, size):
    wide = random_tensor(6, 5, head_dim + 3)
    x, (cosine, sine) = wide[:, 1:4, 2 : 2 + head_dim], angles(6, size)
    expected = reference.rotate(x, cosine, sine)
    torch.testing.assert_close(rotate(x, cosine, sine), expected, rtol=1e-6, atol=1e-6)
    room = torch.zeros(3, 6, head_dim + 1).transpose(0, 1)[:, :, 1:]
    assert same_bits(rotate(x, cosine, sine, out=room), rotate(x, cosine, sine))
    inside, before = rotate(x, cosine, sine), wide.clone()
    assert same_bits(rotate(x, cosine, sine, out=x), inside)
    before[:, 1:4, 2 : 2 + head_dim] = inside
    assert same_bits(wide, before)


@at_every_level
@pytest.mark.parametrize("name", list(activations))
def test_activations_equal_the_reference(level, name):
    x = torch.cat((torch.linspace(-12, 12, 501), torch.tensor([0.0, -1e4, 1e4, 1e-30, -torch.inf, torch.inf])))[None]
    expected = reference.activate(x, name)
    # Far below zero torch has zero or NaN, where the quotient has next to nothing.
    torch.testing.assert_close(activate(x[:, :504], name), expected[:, :504], rtol=1e-6, atol=5e-7)
    up = random_tensor(*x.shape)
    expected = reference.activate(x[:, :501], name, up=up[:, :501])
    torch.testing.assert_close(activate(x[:, :501], name, up=up[:, :501]), expected, rtol=1e-6, atol=5e-7)
    assert same_bits(activate(x, name, up=up, out=up), activate(x, name, up=random_tensor(*x.shape)))


@at_every_level
def test_strides_of_norms_and_gates(level):
    wide, room = random_tensor(6, 200), torch.full((6, 60), 7.0)
    for operation in (rms, layer):
        assert same_bits(operation(wide[:, 9:49], out=room[:, 3:43]), operation(wide[:, 9:49].contiguous()))
    inside = rms(wide[:, 9:49])
    assert same_bits(rms(wide[:, 9:49], out=wide[:, 9:49]), inside)
    assert (room[:, [0, 1, 2, 43, 59]] == 7).all()


X, WEIGHT, ANGLES = random_tensor(4, 8), torch.ones(8), angles(4, 4)
HEADS = random_tensor(4, 2, 6)
BAD_CALLS = {
    "norm of doubles": (lambda: rms(X.double()), TypeError, "float64"),
    "norm of columns": (lambda: rms(random_tensor(8, 4).t()), ValueError, "contiguous"),
    "weight's size": (lambda: rms_norm(X, torch.ones(7), epsilon=EPSILON), ValueError, "weight"),
    "weight's type": (lambda: rms_norm(X, WEIGHT.half(), epsilon=EPSILON), TypeError, "weight"),
    "weight's strides": (lambda: rms_norm(X, torch.ones(16)[::2], epsilon=EPSILON), ValueError, "contiguous"),
    "bias": (lambda: layer_norm(X, WEIGHT, torch.ones(9), epsilon=EPSILON), ValueError, "bias"),
    "epsilon": (lambda: rms_norm(X, WEIGHT, epsilon=float("nan")), ValueError, "epsilon"),
    "no numbers": (lambda: rms(X[:, :0]), ValueError, "0 numbers"),
    "residual's shape": (lambda: rms(X, residual=torch.ones(3, 8)), ValueError, "residual"),
    "residual's rows": (lambda: rms(X, residual=torch.ones(1, 8).expand(4, 8)), ValueError, "overlap"),
    "residual is out": (lambda: rms(X, residual=(same := X.clone()), out=same), ValueError, "share memory"),
    "shifted out": (lambda: rms((wide := random_tensor(4, 9))[:, 1:], out=wide[:, :8]), ValueError, "share memory"),
    "two dimensions": (lambda: rotate(X, *ANGLES), ValueError, "shape"),
    "odd angles": (lambda: rotate(HEADS, torch.ones(4, 3), torch.ones(4, 3)), ValueError, "in pairs"),
    "many angles": (lambda: rotate(HEADS, torch.ones(4, 8), torch.ones(4, 8)), ValueError, "up to 6"),
    "few rows of angles": (lambda: rotate(HEADS, ANGLES[0][:3], ANGLES[1]), ValueError, "cosine"),
    "sines": (lambda: rotate(HEADS, ANGLES[0], ANGLES[1][:, :2]), ValueError, "sine"),
    "heads that overlap": (lambda: rotate(HEADS, *ANGLES, out=HEADS[:, :1].expand(4, 2, 6)), ValueError, "overlap"),
    "activation": (lambda: activate(X, "prelu"), ConfigError, "prelu"),
    "up": (lambda: activate(X, "silu", up=X[:, :7]), ValueError, "up"),
    "up's type": (lambda: activate(X, "silu", up=X.long()), TypeError, "up"),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_input_raises(call, error, message):
    with pytest.raises(error, match=message):
        call()


@at_every_level
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", SIZES)
def test_gathered_rows_are_those_of_the_table(level, dtype, size):
    table = random_tensor(9, size).to(dtype)
    index = torch.tensor([4, 0, 4, 6])
    expected = reference.gather(table, index, scale=0.5, offset=2)
    assert torch.equal(gather(table, index, scale=0.5, offset=2), expected)
    held = random_tensor(4, size, seed=1)
    added = gather(table, index, scale=0.5, offset=2, add=True, out=held.clone())
    assert torch.equal(added, held + table[index + 2].float() * 0.5)
    assert torch.equal(gather(table, scale=2.0), reference.gather(table, scale=2.0))


@needs_library
def test_gather_refuses_rows_that_the_table_does_not_have():
    table = random_tensor(9, 20)
    for index in (torch.tensor([9]), torch.tensor([-1])):
        with pytest.raises(ValueError, match="beyond the 9 rows"):
            gather(table, index)
    with pytest.raises(ValueError, match="beyond"):
        gather(table, torch.tensor([8]), offset=1)
    with pytest.raises(ValueError, match="share memory"):
        gather(table, torch.tensor([1]), out=table[:1])
    with pytest.raises(ValueError, match="add needs an out"):
        gather(table, torch.tensor([1]), add=True)
