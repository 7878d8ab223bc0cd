"""Compares what each test of a method finds with what docs/speculation-matrix.md says."""

from __future__ import annotations

import pytest

from tests.support import matrix


@pytest.fixture(autouse=True)
def as_the_page_says(request: pytest.FixtureRequest):
    """A cell that works does not come to be refused unnoticed, nor the other way round."""
    yield
    found = matrix.feature_of(request.node)
    if found is None or request.config.getoption(matrix.OPTION):
        return
    method, feature = found
    said = matrix.read_cells()[method][feature]
    assert request.node.nodeid in said["tests"]
    assert said["refused"] == dict(request.node.user_properties).get(matrix.REFUSED)
