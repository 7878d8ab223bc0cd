"""Native attention is right, and a row's bits depend on nothing but the row and what it sees, by position."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from paceline.kernels import reference
from paceline.kernels.native.attention import attend
from tests.support.layouts import Request, chunk, decoded, lay_out, numbers, tree
from tests.support.native import LEVELS, on_threads, same_bits

at_every_level = pytest.mark.parametrize("level", LEVELS, indirect=True)
TYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(6, 2, 64), (4, 4, 24), (5, 1, 17), (8, 2, 256), (3, 1, 1), (16, 4, 80)]  # heads, K/V heads, channels
SCALE = 0.2

Attend = Callable[..., torch.Tensor]


def parents_of(count: int, seed: int) -> list[int]:
    random = np.random.default_rng(seed)
    return [int(random.integers(max(-1, node - 40), node)) if node else -1 for node in range(count)]


def others(shape: tuple[int, int, int]) -> list[Request]:
    """A ragged batch: a token, a chunk and a tree."""
    heads, kv_heads, head_dim = shape
    kv = numbers(90, 2, kv_heads, head_dim, seed=31)
    q = numbers(heads, head_dim, seed=32)
    return [decoded(q, kv[:33]), chunk(q, kv, rows=20, behind=3, window=None), tree(q, kv, parents_of(9, 0), 7, None)]


def layouts(
    q: torch.Tensor, kv: torch.Tensor, window: int | None, shape: tuple[int, int, int]
) -> Iterator[tuple[str, list[Request], int]]:
    """Batches that all have the same row, and the row's number."""
    first = 0 if window is None else max(0, len(kv) - window)
    before, behind, ragged = others(shape)
    yield "alone", [decoded(q, kv, first)], 0
    yield "in a batch", [before, decoded(q, kv, first), ragged], 1
    for rows, after in ((20, 0), (70, 33), (400, 130)):
        count = min(rows, len(kv) + after)
        number = count - 1 - after if after < count else 0
        if len(kv) >= len(kv) + after - count + 1:
            yield f"in a chunk of {count}", [chunk(q, kv, rows=count, behind=after, window=window), behind], number
    for nodes in (1, 8, 70):
        chain = list(range(-1, nodes - 1))
        for node in {0, nodes // 2, nodes - 1}:
            if node < len(kv):
                yield f"node {node} of a chain of {nodes}", [tree(q, kv, chain, node, window), ragged], node
    for nodes, node in ((5, 4), (64, 63), (130, 100), (130, 129)):
        parents = parents_of(nodes, nodes)
        if len(list(path_of(parents, node))) <= len(kv):
            yield f"node {node} of a tree of {nodes}", [before, tree(q, kv, parents, node, window)], 1 + node


def path_of(parents: list[int], node: int) -> Iterator[int]:
    while node >= 0:
        yield node
        node = parents[node]


def check_a_row_is_alone(function: Attend, shape: tuple[int, int, int], length: int, **options) -> None:
    """In every layout, over pages of any size, the row has the bits that it has by itself."""
    heads, kv_heads, head_dim = shape
    window, dtype = options.pop("window", None), options.pop("dtype", torch.float32)
    q, kv = numbers(heads, head_dim, seed=length), numbers(length, 2, kv_heads, head_dim, seed=length + 1)
    expected = None
    for number, (name, requests, row) in enumerate(layouts(q, kv, window, shape)):
        for page_size in (16, (1, 3, 64, 1000)[number % 4]):
            found = function(*lay_out(requests, page_size=page_size, dtype=dtype), scale=SCALE, **options)[row]
            expected = found if expected is None else expected
            assert same_bits(found, expected), f"{name}, pages of {page_size}, {shape}, {length} positions, {options}"
    assert expected.isfinite().all()


@at_every_level
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_row_is_alone(level, dtype):
    for number, length in enumerate((1, 17, 100, 257, 600)):
        check_a_row_is_alone(attend, SHAPES[number % len(SHAPES)], length, dtype=dtype)


@at_every_level
@pytest.mark.parametrize("window", [1, 5, 40, 300])
def test_a_row_with_a_window_is_alone(level, window):
    for length in (3, 130, 530):
        check_a_row_is_alone(attend, (6, 2, 16), length, window=window)


@at_every_level
def test_a_row_with_capped_scores_is_alone(level):
    check_a_row_is_alone(attend, (6, 2, 16), 300, softcap=1.5)


@at_every_level
def test_threads_cannot_be_seen(level):
    for shape, lengths in (((6, 2, 64), (700, 3, 1100)), ((4, 4, 16), (2000,)), ((8, 1, 16), (30, 40))):
        heads, kv_heads, head_dim = shape
        requests = [
            decoded(numbers(heads, head_dim, seed=n), numbers(n, 2, kv_heads, head_dim, seed=n)) for n in lengths
        ]
        q, kv = numbers(heads, head_dim, seed=1), numbers(300, 2, kv_heads, head_dim, seed=2)
        for batch in (requests, [*requests, chunk(q, kv, rows=90, behind=0, window=None)]):
            arguments = lay_out(batch, page_size=16)
            with on_threads(1):
                alone = attend(*arguments, scale=SCALE)
            for threads in (2, 3):
                with on_threads(threads):
                    assert same_bits(attend(*arguments, scale=SCALE), alone), f"{threads} threads"


@at_every_level
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_equals_the_reference(level, dtype):
    masks = itertools.cycle(((None, None), (20, None), (None, 2.0), (7, 0.5)))
    for shape, (window, softcap) in zip(SHAPES, masks, strict=False):
        heads, kv_heads, head_dim = shape
        q, kv = numbers(heads, head_dim, seed=3), numbers(300, 2, kv_heads, head_dim, seed=4)
        requests = [
            decoded(q, kv[:77], 0 if window is None else 77 - window),
            chunk(q, kv, rows=30, behind=9, window=window),
            tree(q, kv[:90], parents_of(130, 5), 120, window),
        ]
        arguments = lay_out(requests, page_size=16, dtype=dtype)
        expected = reference.attend(*arguments, scale=SCALE, softcap=softcap)
        found = attend(*arguments, scale=SCALE, softcap=softcap)
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=3e-6)


@at_every_level
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_rounded_once(level, dtype):
    q, pools, seen = lay_out(others((6, 2, 40)), page_size=16)
    q = q.to(dtype)
    expected = attend(q.float(), pools, seen, scale=SCALE).to(dtype)
    assert same_bits(attend(q, pools, seen, scale=SCALE), expected)
    wide = torch.empty(len(q), 6, 40)
    assert same_bits(attend(q, pools, seen, scale=SCALE, out=wide), attend(q.float(), pools, seen, scale=SCALE))
    assert same_bits(attend(q, pools, seen, scale=SCALE, out=q), expected)
    assert same_bits(q, expected)


@at_every_level
def test_views_of_packed_rows(level):
    q, pools, seen = lay_out(others((6, 2, 40)), page_size=16)
    wide, room = numbers(len(q), 10, 40, seed=9), torch.full((len(q), 8, 40), 7.0)
    wide[:, 2:8] = q
    found = attend(wide[:, 2:8], pools, seen, scale=SCALE, out=room[:, 1:7])
    assert same_bits(found, attend(q, pools, seen, scale=SCALE))
    assert (room[:, [0, 7]] == 7).all()


@at_every_level
def test_a_row_that_is_not_finite_spoils_no_other(level):
    q, pools, seen = lay_out(others((6, 2, 40)), page_size=16)
    expected = attend(q, pools, seen, scale=SCALE)
    q[5, 3, 2] = torch.nan
    found = attend(q, pools, seen, scale=SCALE)
    others_of = [row for row in range(len(q)) if row != 5]
    assert same_bits(found[others_of], expected[others_of])
    assert found[5, 3].isnan().all()
    assert same_bits(found[5, :3], expected[5, :3])


@at_every_level
def test_scores_of_any_size(level):
    q, pools, seen = lay_out(others((6, 2, 40)), page_size=16)
    for factor in (0.0, 1e-20, 30.0, 3000.0):
        torch.testing.assert_close(
            attend(q * factor, pools, seen, scale=1.0), reference.attend(q * factor, pools, seen, scale=1.0),
            rtol=1e-4, atol=1e-4,
        )  # fmt: skip
