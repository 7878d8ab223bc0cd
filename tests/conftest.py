"""What every test may count on: Ctrl-C interrupts, also in a run that was started in the background.

A shell has such a run ignore SIGINT, and every process that a test starts and interrupts would inherit that.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support import matrix


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(matrix.OPTION, metavar="FILE", help="where to write which method works with which feature")


def pytest_configure(config: pytest.Config) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "covers(feature, parameter): a test of a method that counts for a feature")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call):
    report = yield
    if report.when == "call" and report.passed and item.config.getoption(matrix.OPTION):
        matrix.note(item.config.stash.setdefault(CELLS, {}), item)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption(matrix.OPTION):
        matrix.write_cells(Path(session.config.getoption(matrix.OPTION)), session.config.stash.get(CELLS, {}))


CELLS: pytest.StashKey[matrix.Cells] = pytest.StashKey()
