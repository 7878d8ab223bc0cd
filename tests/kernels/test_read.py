"""Memory read natively: every word once, by any number of threads, or a refusal."""

from __future__ import annotations

import pytest
import torch

from paceline.kernels.native.read import UNIT, read_sum
from tests.support.native import LEVELS, needs_library, on_threads


def words(count: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31 - 1, (count,), generator=torch.Generator().manual_seed(count)).int()


@pytest.mark.parametrize("level", LEVELS, indirect=True)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_word_is_read_once(level, threads):
    with on_threads(threads):
        for count in (0, UNIT, 5 * UNIT, 1024 * UNIT + 3 * UNIT):
            given = words(count)
            assert torch.equal(read_sum(given), given.sum().int().reshape(1)), count
        for place in (0, 7, 5 * UNIT - 1):  # a word that is passed over, or read twice, shows
            changed = words(5 * UNIT)
            before = read_sum(changed)
            changed[place] += 1
            assert int(read_sum(changed) - before) == 1


@needs_library
def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=f"not \\[{UNIT}\\]"):
        read_sum(words(UNIT + 1))
    with pytest.raises(ValueError, match="strides"):
        read_sum(words(2 * UNIT)[::2])
    with pytest.raises(TypeError, match="float32"):
        read_sum(torch.ones(UNIT))
    given = words(UNIT)
    with pytest.raises(ValueError, match="share memory"):
        read_sum(given, out=given[:1])
