"""Layouts, which are made once per pattern of numbers, against rows counted one by one."""

from __future__ import annotations

import numpy as np
import pytest

from paceline.runner import ragged as made
from paceline.runner.ragged import layout


def counted(known: list[int], nodes: list[int], sampled: list[bool]) -> dict[str, list[int]]:
    """The oracle: one row after another."""
    found: dict[str, list[int]] = {"owner": [], "place": [], "node_rows": [], "node": [], "logit_rows": []}
    for number, (some, drafted) in enumerate(zip(known, nodes, strict=True)):
        for place in range(some + drafted):
            if place >= some:
                found["node_rows"].append(len(found["owner"]))
                found["node"].append(place - some)
            if sampled[number] and place >= some - 1:
                found["logit_rows"].append(len(found["owner"]))
            found["owner"].append(number)
            found["place"].append(place)
    return found


def check(known: list[int], nodes: list[int], sampled: list[bool]) -> None:
    of = layout(np.array(known, dtype=np.int32), np.array(nodes, dtype=np.int32), np.array(sampled))
    wanted = counted(known, nodes, sampled)
    for name, array in (("owner", of.rows.owner), ("place", of.rows.place)):
        np.testing.assert_array_equal(array, wanted[name])
    for name in ("node_rows", "node", "logit_rows"):
        np.testing.assert_array_equal(getattr(of, name), wanted[name])
    assert of.rows.start[-1] == len(wanted["owner"])
    assert of.sample_start[-1] == len(wanted["logit_rows"])
    assert of.rows.one_each == (of.rows.start.tolist() == list(range(len(known) + 1)))


def every_pattern() -> None:
    """Patterns that come back after others, and that differ in one number only."""
    random = np.random.default_rng(3)
    for _ in range(60):
        size = int(random.integers(1, 4))
        nodes = random.integers(0, 3, size)
        check(random.integers(1, 3, size).tolist(), nodes.tolist(), (random.random(size) < 0.7).tolist())


def test_layouts_are_those_of_their_numbers():
    every_pattern()


@pytest.mark.parametrize("forgotten", [0, 1, 2])
def test_control_a_layout_kept_under_too_short_a_key_is_found_out(monkeypatch, forgotten):
    kept, real = {}, made._layout

    def stale(*key: bytes) -> object:
        return kept.setdefault((*key[:forgotten], *key[forgotten + 1 :], len(key[2])), real(*key))

    monkeypatch.setattr(made, "_layout", stale)
    with pytest.raises((AssertionError, IndexError)):
        every_pattern()


def test_what_steps_share_cannot_be_written_to():
    ones = np.ones(2, dtype=np.int32)
    of = layout(ones, ones, np.array([True, True]))
    for array in (of.rows.start, of.rows.owner, of.rows.place, of.node_rows, of.node, of.logit_rows, of.sample_start):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 5
