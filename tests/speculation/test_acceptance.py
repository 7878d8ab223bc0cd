"""Acceptance on the embedded pair is what it was when docs/results/acceptance-of-the-pair.json was written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from paceline.kernels.native import library
from tests.support import acceptance
from tests.support.native import needs_library

pytestmark = needs_library
TOLERANCE = 0.03
"""Beyond what levels of the kernels have, whose texts may part: eagle3's levels are 3.1 % apart."""
COMMITTED: dict[str, Any] = json.loads(acceptance.COMMITTED.read_text(encoding="utf-8"))


def tokens_per_pass(figures: dict[str, dict[str, int]]) -> float:
    """Of all samplings together."""
    return sum(one["tokens"] for one in figures.values()) / sum(one["passes"] for one in figures.values())


def check(method: str, found: dict[str, dict[str, int]], level: str) -> None:
    """The bits of a level are the same, hence the counts; between levels tokens per pass are alike."""
    known = {name: figures[method] for name, figures in COMMITTED["levels"].items() if method in figures}
    assert known
    if level in known:
        assert found == known[level]
    rates = [tokens_per_pass(figures) for figures in known.values()]
    assert min(rates) * (1 - TOLERANCE) <= tokens_per_pass(found) <= max(rates) * (1 + TOLERANCE)


@pytest.mark.parametrize("method", acceptance.METHODS)
def test_acceptance_is_as_committed(method: str) -> None:
    """``python3 -m tests.support.acceptance`` writes the figures anew, where a change is meant."""
    if not acceptance.there(method):
        pytest.skip(f"the package holds no {method} module for the embedded target")
    found = {sampling: acceptance.measure(method, sampling) for sampling in acceptance.SAMPLING}
    check(method, found, str(library.level()))


def test_what_is_there_has_figures_of_the_same_questions() -> None:
    assert COMMITTED["questions"] == list(acceptance.QUESTIONS)
    assert COMMITTED["max_tokens"] == acceptance.MAX_TOKENS
    known = {method for figures in COMMITTED["levels"].values() for method in figures}
    assert known == {method for method in acceptance.METHODS if acceptance.there(method)}


def test_fewer_accepted_tokens_are_caught() -> None:
    """By a twentieth, at a level that nobody measured."""
    figures = next(iter(COMMITTED["levels"].values()))["draft_model"]
    worse = {
        sampling: {
            **one,
            "passes": one["passes"] + one["tokens"] // 20,
            "accepted": one["accepted"] - one["tokens"] // 20,
        }
        for sampling, one in figures.items()
    }
    check("draft_model", figures, "another")
    with pytest.raises(AssertionError):
        check("draft_model", worse, "another")
