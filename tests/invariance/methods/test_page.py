"""docs/speculation-matrix.md says what the tests of this room find, of every method that there is."""

from __future__ import annotations

import copy

import pytest

from paceline.speculation import proposers
from scripts.speculation_matrix import PAGE, page
from tests.invariance.methods import test_features, test_native, test_verifiers
from tests.support import proposers as _tests_own  # noqa: F401 (registers further methods, which have no row)
from tests.support.matrix import Cells, expected_ids, read_cells
from tests.support.methods import METHODS, registered

MODULES = [test_features, test_native, test_verifiers]


def check_cells(cells: Cells) -> None:
    """Every method has a row, every cell its tests, and no test is one that is not there."""
    assert {METHODS[row]["method"] for row in cells} == registered()
    found = {
        (method, feature, name)
        for method, row in cells.items()
        for feature, cell in row.items()
        for name in cell["tests"]
    }
    assert found == expected_ids(MODULES)


def test_the_page_is_what_the_tests_record() -> None:
    """Run ``pytest tests/invariance/methods --matrix FILE`` and ``scripts/speculation_matrix.py`` to write it anew."""
    cells = read_cells()
    check_cells(cells)
    assert PAGE.read_text(encoding="utf-8") == page(cells)


def test_tests_own_methods_have_no_row() -> None:
    assert "random_tree" in proposers
    assert "random_tree" not in registered()
    assert {"draft_model", "eagle3", "composite"} <= registered()


@pytest.mark.parametrize(
    "fault", ["a row is missing", "a cell is missing", "a test is not there", "a test did not run"]
)
def test_a_page_that_is_not_whole_is_caught(fault: str) -> None:
    cells = copy.deepcopy(read_cells())
    row = cells["ngram"]
    if fault == "a row is missing":
        del cells["ngram"]
    elif fault == "a cell is missing":
        del row["abort"]
    elif fault == "a test is not there":
        row["abort"]["tests"].append("tests/invariance/methods/test_features.py::test_nothing[ngram]")
    else:
        row["controls"]["tests"].pop()
    with pytest.raises(AssertionError):
        check_cells(cells)
