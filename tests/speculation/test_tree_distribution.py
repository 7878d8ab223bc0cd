"""Trees through the real engine: the joint distribution of the first tokens is the target's, drawn trees or certain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.speculation.joint import DEVIATIONS, Controls, Oracle, deviations, sampled
from tests.speculation.test_distribution import COUNT, FEW, GRID
from tests.support import proposers  # noqa: F401 - registers the drafters
from tests.support.engines import Models

by_verifier = pytest.mark.parametrize("verifier", ["tree", "traversal"])


def run(models: Models, verifier: str, settings: list[Controls], **speculation: Any) -> np.ndarray:
    speculation = {"method": "drawn_tree", "model": "near", "num_speculative_tokens": 2, **speculation}
    options = {"max_num_seqs": 512, "max_num_batched_tokens": 8192}
    engine = models.engine({**speculation, "verifier": verifier}, **options)
    found = sampled(engine, settings, COUNT)
    assert engine.counters.num_accepted > 0
    return found


@by_verifier
def test_texts_follow_the_target(verifier: str, narrow: Models, oracle: Oracle) -> None:
    joints = [oracle.joint(controls) for controls in GRID]
    assert deviations(run(narrow, verifier, GRID), joints) < DEVIATIONS


@pytest.mark.parametrize(
    "speculation",
    [
        {"model": "reversed"},
        {"num_speculative_tokens": 3},
        {"method": "model_tree"},  # certain
        {"method": "draft_model"},  # a chain
    ],
    ids=str,
)
@by_verifier
def test_other_drafts_change_nothing(
    verifier: str, speculation: dict[str, Any], narrow: Models, oracle: Oracle
) -> None:
    joints = [oracle.joint(controls) for controls in FEW]
    assert deviations(run(narrow, verifier, FEW, **speculation), joints) < DEVIATIONS
