"""Collects which speculative method was tested with which feature, for docs/speculation-matrix.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "docs" / "results" / "speculation-matrix.json"
OPTION = "--matrix"
REFUSED = "refused"

Outcome = dict[str, Any]
"""``tests``: ids of those that passed; ``refused``: the error's first line, or None where the feature works."""
Cells = dict[str, dict[str, Outcome]]
"""method -> feature -> outcome"""


def covers(feature: str, *, param: tuple[str, Mapping[str, Any] | list[str]] | None = None) -> Callable[[Any], Any]:
    """Has a test run once per method, and count for ``feature``; ``param`` is another argument and its values.

    Args:
        feature: a column of the page, or ``"{}"`` for the value of ``param``.
    """

    def decorate(test: Any) -> Any:
        if param is not None:
            test = pytest.mark.parametrize(param[0], list(param[1]))(test)
        return pytest.mark.covers(feature, param and param[0])(pytest.mark.parametrize("method", METHODS)(test))

    return decorate


def feature_of(item: pytest.Item) -> tuple[str, str] | None:
    """The method and the feature that a test counts for."""
    marker = item.get_closest_marker("covers")
    if marker is None:
        return None
    name, param = marker.args
    values = item.callspec.params  # type: ignore[attr-defined]
    return values["method"], name.format(values.get(param))


def note(cells: Cells, item: pytest.Item) -> None:
    """Files a test that passed."""
    found = feature_of(item)
    if found is None:
        return
    method, feature = found
    outcome = cells.setdefault(method, {}).setdefault(feature, {"tests": [], "refused": None})
    outcome["tests"].append(item.nodeid)
    outcome["refused"] = dict(item.user_properties).get(REFUSED, outcome["refused"])


def expected_ids(modules: list[ModuleType]) -> set[tuple[str, str, str]]:
    """(method, feature, test id) of every test that is there, whether it ran or not."""
    return {entry for module in modules for test in vars(module).values() for entry in _ids(module, test)}


def _ids(module: ModuleType, test: Any) -> Iterator[tuple[str, str, str]]:
    marks = getattr(test, "pytestmark", ())
    covering = [mark for mark in marks if mark.name == "covers"]
    if not covering:
        return
    feature, param = covering[0].args
    values = {mark.args[0]: list(mark.args[1]) for mark in marks if mark.name == "parametrize"}
    place = Path(str(module.__file__)).relative_to(ROOT).as_posix()
    for method in values["method"]:
        for value in values.get(param, [None]):
            names = method if param is None else f"{value}-{method}"
            yield method, feature.format(value), f"{place}::{test.__name__}[{names}]"


def read_cells(path: Path = COMMITTED) -> Cells:
    cells: Cells = json.loads(path.read_text(encoding="utf-8"))
    return cells


def write_cells(path: Path, cells: Cells) -> None:
    for row in cells.values():
        for outcome in row.values():
            outcome["tests"].sort()
    path.write_text(json.dumps(cells, indent=1, sort_keys=True) + "\n", encoding="utf-8")
