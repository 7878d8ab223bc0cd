"""The factors that must be invisible in the tokens, their full product, and an array that covers every pair."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from paceline.core.params import SamplingParams
from tests.support.methods import METHODS

LIKE_OTHERS = ("draft_model", "eagle", "mtp")
"""Near and far are draft models; chains of modules are eagle3's."""
SPECULATION: dict[str, dict[str, Any] | None] = {
    "off": None,
    "near": {"method": "draft_model", "model": "near"},
    "far": {"method": "draft_model", "model": "far"},
    "features": {"method": "feature_tree", "model": "reader"},
    **{name: options for name, options in METHODS.items() if name not in LIKE_OTHERS},
    "tree": {"method": "random_tree", "model": "9"},
    "big_tree": {"method": "random_tree", "model": "70"},  # more nodes than one word of ancestor bits
}

CACHES: dict[str, dict[str, Any]] = {
    "page1": {"block_size": 1},
    "page4": {"block_size": 4},
    "page16": {"block_size": 16},
    "static": {"cache": "static"},
    "none": {"cache": "none"},
}

SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "greedy_penalties": {"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 0.7},
    "seeded": {"temperature": 1.0, "seed": 11},
    "top_k_top_p": {"temperature": 0.9, "seed": 12, "top_k": 20, "top_p": 0.9},
    "min_p_bias": {"temperature": 1.2, "seed": 13, "min_p": 0.02, "logit_bias": {5: 2.0, 7: -3.0}, "min_tokens": 6},
    "penalties": {"temperature": 0.8, "seed": 14, "presence_penalty": 0.8, "frequency_penalty": 0.5, "top_k": 30},
    "allowed": {"temperature": 1.0, "seed": 15, "allowed_token_ids": list(range(3, 40)), "repetition_penalty": 1.1},
}

FACTORS: dict[str, tuple[Any, ...]] = {
    "speculation": tuple(SPECULATION),
    "depth": (1, 2, 4, 7),
    "batch": ("alone", "mixed"),
    "chunk": (5, 16, 2048),
    "cache": tuple(CACHES),
    "preempt": (0, 3),
    "sampling": tuple(SAMPLING),
    "n": (1, 3),
    "backend": ("sdpa", "reference"),
    "family": ("llama", "gpt2"),
}

IMPOSSIBLE = {("mtp tree", "gpt2")}
"""A method and a family whose modules nobody makes."""


@dataclass(frozen=True)
class Case:
    speculation: str
    depth: int
    batch: str
    chunk: int
    cache: str
    preempt: int
    sampling: str
    n: int
    backend: str
    family: str

    def __str__(self) -> str:
        return "-".join(str(getattr(self, name)) for name in FACTORS)

    @property
    def possible(self) -> bool:
        return (self.speculation, self.family) not in IMPOSSIBLE

    def engine_options(self) -> dict[str, Any]:
        return {**CACHES[self.cache], "max_num_batched_tokens": self.chunk, "attention_backend": self.backend}

    def speculative_config(self) -> dict[str, Any] | None:
        config = SPECULATION[self.speculation]
        return None if config is None else {**config, "num_speculative_tokens": self.depth}

    def params(self) -> SamplingParams:
        return SamplingParams(**SAMPLING[self.sampling], n=self.n, max_tokens=14)


def full_product(**fixed: str) -> Iterator[Case]:
    """Every combination of factors, those in ``fixed`` held."""
    levels = [(fixed[name],) if name in fixed else values for name, values in FACTORS.items()]
    return (case for values in itertools.product(*levels) if (case := Case(*values)).possible)


def covering_array(seed: int = 0, candidates: int = 40) -> list[Case]:
    """Cases such that every pair of values of two factors occurs together in at least one."""
    random = np.random.default_rng(seed)
    names = list(FACTORS)
    pairs = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(range(len(names)), 2)
        for x in FACTORS[names[a]]
        for y in FACTORS[names[b]]
        if (x, y) not in IMPOSSIBLE
    }
    chosen: list[Case] = []
    while pairs:
        forced = min(pairs, key=str)
        best: tuple[int, tuple[Any, ...], set[Any]] = (-1, (), set())
        for _ in range(candidates):
            values = [FACTORS[name][random.integers(len(FACTORS[name]))] for name in names]
            for index, value in forced:
                values[index] = value
            covered = set(itertools.combinations(enumerate(values), 2)) & pairs
            if len(covered) > best[0] and Case(*values).possible:
                best = (len(covered), tuple(values), covered)
        chosen.append(Case(*best[1]))
        pairs -= best[2]
    return chosen
