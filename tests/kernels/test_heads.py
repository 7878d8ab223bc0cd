"""The native step before attention is right: norms, rotations, cells; its rows do not see each other."""

from __future__ import annotations

import pytest
import torch

from paceline.kernels import reference
from paceline.kernels.native.heads import Angles, HeadNorms, write_heads
from paceline.kernels.native.pools import MOST_CHANNELS, Pools
from tests.support.layouts import numbers
from tests.support.native import LEVELS, on_threads, same_bits

at_every_level = pytest.mark.parametrize("level", LEVELS, indirect=True)
TYPES = [torch.float32, torch.bfloat16, torch.float16]
CASES = {  # heads, K/V heads, channels, rotated channels, whether heads are normed
    "plain": (6, 2, 64, 64, False),
    "normed": (4, 4, 24, 24, True),
    "partly rotated": (5, 1, 80, 20, True),
    "not rotated": (3, 1, 17, 0, True),
    "wide": (2, 1, 256, 256, True),
    "too wide for the stack": (2, 1, 258, 258, True),
    "far wider": (3, 2, 600, 302, False),
    "widest": (1, 1, MOST_CHANNELS, MOST_CHANNELS, True),
    "odd": (2, 2, 37, 34, False),
}
of_every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def empty_pools(
    case: tuple[int, int, int, int, bool], *, page_size: int = 3, dtype: torch.dtype = torch.float32
) -> Pools:
    shape = (-(-40 // page_size), case[1], page_size, case[2])
    return torch.full(shape, 7.0, dtype=dtype), torch.full(shape, 7.0, dtype=dtype)


def options_of(case: tuple[int, int, int, int, bool], rows: int = 9) -> dict[str, Angles | HeadNorms | None]:
    _, _, head_dim, size, normed = case
    radians = numbers(50, size // 2, seed=7)
    cosine, sine = torch.cat((radians.cos(),) * 2, 1), torch.cat((-radians.sin(), radians.sin()), 1)
    positions = torch.randperm(50, generator=torch.Generator().manual_seed(1))[:rows]
    return {
        "angles": Angles(cosine, sine, positions) if size else None,
        "norms": HeadNorms(*numbers(2, head_dim, seed=8), 1e-6) if normed else None,
    }


def packed(case: tuple[int, int, int, int, bool], rows: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed rows and their cells."""
    cells = torch.randperm(39, generator=torch.Generator().manual_seed(2))[:rows]
    return numbers(rows, (case[0] + 2 * case[1]) * case[2], seed=3), cells


@at_every_level
@of_every_case
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_equals_the_reference(level, case, dtype):
    (qkv, cells), options = packed(case), options_of(case)
    pools, expected_pools = empty_pools(case, dtype=dtype), empty_pools(case, dtype=dtype)
    expected = reference.write_heads(qkv, expected_pools, cells, **options)
    found = write_heads(qkv, pools, cells, **options)
    close = {"rtol": 2e-6, "atol": 2e-6}
    torch.testing.assert_close(found, expected, **close)
    if dtype is not torch.float32:
        close = {"rtol": 2**-7 if dtype is torch.bfloat16 else 2**-10, "atol": 1e-6}
    torch.testing.assert_close(pools[0], expected_pools[0], **close)
    assert same_bits(pools[1], expected_pools[1])


@at_every_level
@of_every_case
def test_rows_are_alone(level, case):
    (qkv, cells), options = packed(case), options_of(case)
    pools = empty_pools(case)
    with on_threads(1):
        expected = write_heads(qkv, pools, cells, **options)
    for page_size, threads in ((1, 1), (3, 2), (64, 3)):
        one = empty_pools(case, page_size=page_size)
        with on_threads(threads):
            for rows in ([0], list(range(8, 0, -1))):
                part = dict(options)
                if part["angles"] is not None:
                    part["angles"] = Angles(part["angles"].cosine, part["angles"].sine, part["angles"].rows[rows])
                assert same_bits(write_heads(qkv[rows], one, cells[rows], **part), expected[rows])
        for pool, whole in zip(one, pools, strict=True):
            assert same_bits(pool[cells // page_size, :, cells % page_size], whole[cells // 3, :, cells % 3])


@at_every_level
@of_every_case
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_in_place_and_rounded_once(level, case, dtype):
    (qkv, cells), options = packed(case), options_of(case)
    qkv = qkv.to(dtype)
    exact, rounded = empty_pools(case), empty_pools(case, dtype=dtype)
    expected = write_heads(qkv.float(), exact, cells, **options).to(dtype)
    before, size = qkv.clone(), case[0] * case[2]
    write_heads(qkv, rounded, cells, **options, out=qkv[:, :size])
    assert same_bits(qkv[:, :size], expected)
    assert same_bits(qkv[:, size:], before[:, size:])
    for pool, wide in zip(rounded, exact, strict=True):
        assert same_bits(pool, wide.to(dtype))


@at_every_level
def test_angles_without_rows_are_those_of_the_row(level):
    case = CASES["plain"]
    (qkv, cells), options = packed(case), options_of(case)
    angles = options["angles"]
    pools, others = empty_pools(case), empty_pools(case)
    expected = write_heads(qkv, pools, cells, angles=angles)
    own = Angles(angles.cosine[angles.rows], angles.sine[angles.rows])
    assert same_bits(write_heads(qkv, others, cells, angles=own), expected)
    assert same_bits(others[0], pools[0])
