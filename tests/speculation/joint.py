"""The joint distribution of a tiny model's first tokens, by brute force, and how far samples lie from it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from paceline.core.params import SamplingParams
from paceline.core.request import Group
from paceline.engine.engine import Engine
from paceline.engine.input_processor import InputProcessor
from paceline.models import CausalLM
from tests.support.checkpoints import full_logits
from tests.support.oracle import probabilities, processed

VOCAB = 8
LENGTH = 4
"""Tokens that a request generates."""
PROMPT = (3, 5, 2)
DEVIATIONS = 5.0
"""How far a statistic may lie from its mean; chance goes further about once in a million times."""
LEAST_EXPECTED = 4.0
"""Cells that expect fewer samples are counted as one."""

Controls = dict[str, Any]


class Oracle:
    """The target's raw logits behind every text of up to ``LENGTH`` - 1 tokens, and what controls make of them."""

    def __init__(self, target: CausalLM) -> None:
        self.logits: dict[tuple[int, ...], list[float]] = {}
        for leaf in itertools.product(range(VOCAB), repeat=LENGTH - 1):
            rows = full_logits(target, [*PROMPT, *leaf])[len(PROMPT) - 1 :].tolist()
            self.logits.update({leaf[:depth]: row for depth, row in enumerate(rows)})

    def joint(self, controls: Controls) -> np.ndarray:
        """[V] * LENGTH"""
        params, joint = SamplingParams(**controls), np.ones(())
        for depth in range(LENGTH):
            rows = [self._row(params, path) for path in itertools.product(range(VOCAB), repeat=depth)]
            joint = joint[..., None] * np.array(rows).reshape(*[VOCAB] * depth, VOCAB)
        return joint

    def _row(self, params: SamplingParams, path: tuple[int, ...]) -> list[float]:
        scores, _ = processed(self.logits[path], params, list(PROMPT), list(path))
        return probabilities(scores)


def sampled(engine: Engine, settings: list[Controls], count: int, *, seed: int = 0) -> np.ndarray:
    """[settings, count, LENGTH] tokens; requests of all settings run together, each with a seed of its own."""
    processor, calls = InputProcessor(engine, None), []
    for number in range(count):
        for place, controls in enumerate(settings):
            key = seed + number * len(settings) + place
            params = SamplingParams(**controls, seed=key, max_tokens=LENGTH, ignore_eos=True)
            calls.append(processor.group(list(PROMPT), params))
    _run(engine, calls)
    tokens = [group.members[0].output_token_ids for group in calls]
    return np.array(tokens).reshape(count, len(settings), LENGTH).swapaxes(0, 1)


def _run(engine: Engine, calls: list[Group]) -> None:
    for group in calls:
        engine.add(group)
    while engine.has_work:
        engine.step()
    assert engine.proposer is None or not engine.proposer.counters.num_failures


@dataclass(frozen=True)
class Distance:
    """A chi-square statistic and its degrees of freedom."""

    statistic: float
    freedom: int

    def __add__(self, other: Distance) -> Distance:
        return Distance(self.statistic + other.statistic, self.freedom + other.freedom)

    @property
    def deviations(self) -> float:
        """Standard deviations from the mean, by Wilson and Hilferty's cube root."""
        expand = 2 / (9 * self.freedom)
        return float(((self.statistic / self.freedom) ** (1 / 3) - (1 - expand)) / math.sqrt(expand))


def distance(tokens: np.ndarray, joint: np.ndarray, places: tuple[int, ...] | None = None) -> Distance:
    """How far ``tokens`` [N, L] lie from ``joint`` [V] * L; at some of the positions, or at all."""
    places = tuple(range(joint.ndim)) if places is None else places
    expected = _marginal(joint, places) * len(tokens)
    cells = np.ravel_multi_index(tuple(tokens[:, place] for place in places), [len(joint)] * len(places))
    return _distance(np.bincount(cells, minlength=expected.size), expected)


def _marginal(joint: np.ndarray, places: tuple[int, ...]) -> np.ndarray:
    return joint.sum(axis=tuple(place for place in range(joint.ndim) if place not in places)).ravel()


def _distance(counts: np.ndarray, expected: np.ndarray) -> Distance:
    if counts[expected == 0].any():
        return Distance(math.inf, 1)
    rare = expected < LEAST_EXPECTED
    expected = np.append(expected[~rare], expected[rare].sum())
    counts = np.append(counts[~rare], counts[rare].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    return Distance(float(((counts - expected) ** 2 / expected).sum()), max(1, len(expected) - 1))


PLACES = ((0, 1), (1, 2), (2, 3), (0, 1, 2), (1, 2, 3))


def deviations(tokens: np.ndarray, joints: list[np.ndarray]) -> float:
    """The largest deviation over the settings, and over all of them together, at any of ``PLACES``."""
    worst = -math.inf
    for places in PLACES:
        found = [distance(part, joint, places) for part, joint in zip(tokens, joints, strict=True)]
        worst = max(worst, sum(found[1:], found[0]).deviations, *(one.deviations for one in found))
    return worst


def expected_deviations(wrong: list[np.ndarray], joints: list[np.ndarray], count: int) -> float:
    """What ``deviations`` gives on average for ``count`` samples of each of ``wrong``, over all of them together.

    A chi-square's mean is its degrees of freedom and what the distributions themselves are apart; chance moves a
    deviation by about 1.
    """
    worst = -math.inf
    for places in PLACES:
        apart = [
            _distance(_marginal(mine, places) * count, _marginal(joint, places) * count)
            for mine, joint in zip(wrong, joints, strict=True)
        ]
        whole = sum(apart[1:], apart[0])
        worst = max(worst, Distance(whole.statistic + whole.freedom, whole.freedom).deviations)
    return worst
