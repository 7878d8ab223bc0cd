from __future__ import annotations

from collections.abc import Iterator

import pytest

from paceline.kernels.native import library


@pytest.fixture
def level(request) -> Iterator[str]:
    """The level that calls go to in this test."""
    library.select(request.param)
    yield request.param
    library.reload()
