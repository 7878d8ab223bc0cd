"""Thousands of short random calls, arriving and leaving at any moment: nothing leaks and no token is wrong."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from paceline.core.call import CallOptions
from paceline.core.params import SamplingParams
from paceline.core.request import Group
from paceline.engine.engine import Engine
from paceline.engine.input_processor import InputProcessor
from paceline.models import load_model
from tests.support import proposers
from tests.support.calls import answers, assert_idle, begin, finish, random_prompt
from tests.support.checkpoints import perturb, tiny_llama
from tests.support.engines import Models, check_books

VOCAB_SIZE = 48
METHODS: dict[str, dict[str, Any]] = {
    "draft_model": {"method": "draft_model", "model": "near", "num_speculative_tokens": 3},
    "ngram": {"method": "ngram", "prompt_lookup_min": 1, "prompt_lookup_max": 3},
    "suffix": {"method": "suffix", "num_speculative_tokens": 3},
    "token_recycling": {"method": "token_recycling", "num_speculative_tokens": 3},
    "lookahead": {"method": "lookahead", "num_speculative_tokens": 3, "lookahead_window": 2},
    "random_tree": {"method": "random_tree", "model": "6", "num_speculative_tokens": 3},
}
PREFIXES = [random_prompt(n, length, VOCAB_SIZE) for n, length in enumerate((0, 5, 9, 13))]
"""Prompts begin alike, so that the prefix cache has something to find."""
STAGES = ("queued", "in its prompt", "decoding")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Models:
    root = tmp_path_factory.mktemp("soak")
    tiny_llama(root / "target", vocab_size=VOCAB_SIZE, layers=1, hidden=16, num_heads=2, num_kv_heads=1)
    perturb(root / "target", root / "near", 0.1)
    target, near = (load_model(root / name, dtype=torch.float64) for name in ("target", "near"))
    return Models(target, {"near": near})


class Soak:
    """Random calls on a random schedule, all from one seed."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine, self.random = engine, np.random.default_rng(seed)
        self.input_processor = InputProcessor(engine, None)
        self.jobs: list[tuple[Group, list[int], SamplingParams]] = []
        self.live: list[Group] = []
        self.num_aborted = dict.fromkeys(STAGES, 0)
        self.doom: dict[Group, str] = {}

    def arrive(self) -> None:
        beginning = PREFIXES[int(self.random.integers(len(PREFIXES)))]
        own = self.random.integers(3, VOCAB_SIZE, size=self.random.integers(1, 12))
        prompt = [*beginning, *map(int, own)]
        params = self._params()
        options = CallOptions(
            speculate=self.random.random() < 0.9,
            priority=int(self.random.integers(3)),
            client=str(self.random.integers(3)),
            cache_salt=str(self.random.integers(2)),
        )
        group = begin(self.engine, prompt, params, processor=self.input_processor, options=options)
        self.jobs.append((group, prompt, params))
        self.live.append(group)
        if self.random.random() < 0.45:
            self.doom[group] = str(self.random.choice(STAGES))

    def _params(self) -> SamplingParams:
        random = self.random
        options: dict[str, Any] = {
            "n": int(random.choice([1, 1, 1, 2, 3])),
            "max_tokens": int(random.integers(1, 21)),
            "seed": int(random.integers(10**6)),
            "temperature": float(random.choice([0.0, 0.7, 1.0])),
        }
        extras: list[dict[str, Any]] = [
            {"repetition_penalty": 1.3},
            {"presence_penalty": 0.5, "frequency_penalty": 0.4},
            {"stop_token_ids": [int(token) for token in random.integers(3, VOCAB_SIZE, size=3)]},
            {"top_k": 5, "top_p": 0.9},
            {"min_tokens": 1, "logit_bias": {1: 2.0}},
            {"logprobs": 1, "prompt_logprobs": 1},
            {"ignore_eos": True},
        ]
        for extra in extras:
            if random.random() < 0.2:
                options |= extra
        return SamplingParams(**options)

    @staticmethod
    def stage_of(group: Group) -> str:
        if any(member.output_token_ids for member in group.members):
            return "decoding"
        return "in its prompt" if any(member.seat >= 0 for member in group.members) else "queued"

    def abort_some(self) -> None:
        """Ends the doomed calls that have come to their stage, sooner or later."""
        for group in self.live:
            if self.doom.get(group) == self.stage_of(group) and self.random.random() < 0.5:
                self.num_aborted[self.stage_of(group)] += 1
                self.engine.abort(group)

    def run(self, count: int) -> None:
        steps = 0
        while self.live or len(self.jobs) < count:
            for _ in range(min(int(self.random.integers(5)), 12 - len(self.live), count - len(self.jobs))):
                self.arrive()
            self.abort_some()
            self.engine.step()
            self.live = [group for group in self.live if not group.finished]
            steps += 1
            assert steps < 20 * count, "the engine makes no progress"
            if steps % 5 == 0:
                self.engine.cache.check()
                check_books(self.engine)


@pytest.mark.parametrize(
    ("method", "policy"), [*zip(METHODS, itertools.cycle(("fcfs", "priority", "fair")), strict=False)]
)
def test_soak(method, policy, small: Models) -> None:
    count = 670
    engine = small.engine(
        METHODS[method], num_blocks=18, block_size=3, max_num_batched_tokens=14, scheduling_policy=policy
    )
    proposers.TRUTH.clear()
    soak = Soak(engine, seed=list(METHODS).index(method))
    soak.run(count)
    assert_idle(engine)
    assert engine.scheduler.num_preemptions > 20
    assert engine.counters.num_accepted > 0
    assert engine.cache.num_prefix_hits > 0
    assert min(soak.num_aborted.values()) > 10
    assert sum(soak.num_aborted.values()) > 0.25 * count
    complete = [job for job in soak.jobs if all(m.finish_reason in ("stop", "length") for m in job[0].members)]
    assert len(complete) + sum(soak.num_aborted.values()) == count
    sample = complete[::4]
    plain = small.engine(max_num_seqs=32)
    expected = finish(plain, [begin(plain, prompt, params) for _, prompt, params in sample])
    assert [answers(group) for group, _, _ in sample] == expected
