"""Lookahead decoding: the window as one tree, guesses that the target improves, and n-grams that come of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from paceline.core.config import SpeculativeConfig
from paceline.core.errors import ConfigError
from paceline.core.params import SamplingParams
from paceline.speculation import LookaheadProposer
from paceline.speculation.lookahead import MAX_KEYS, Trie, Window
from tests.invariance.conftest import llama  # noqa: F401 - a fixture
from tests.speculation.salts import PARAMS, PROMPT
from tests.support.engines import Job, Models, preempt_every, run

Target = Callable[[list[int]], int]
"""(whole text) -> next token"""


def paths_of(trie: Trie) -> list[list[int]]:
    paths: list[list[int]] = []
    for token, parent in zip(trie.tokens, trie.parents, strict=True):
        paths.append([*(paths[parent] if parent >= 0 else []), token])
    return paths


def test_columns_hang_on_the_chain_of_the_first_tokens() -> None:
    window = Window(0, width=3, length=4, most=2)
    window.columns = [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    window.pool[50] = [(10, 11, 12), (1, 2, 13)]
    trie = window.draft(np.array([40, 50], dtype=np.int32), 5)
    paths = {tuple(path) for path in paths_of(trie)}
    assert {(1, 2, 3), (1, 4, 5, 6), (1, 4, 7, 8, 9), (10, 11, 12), (1, 2, 13)} <= paths
    assert len(trie.tokens) == len(paths) == 13  # what begins alike is one node
    shallow = {tuple(path) for path in paths_of(window.draft(np.array([40, 50], dtype=np.int32), 3))}
    assert max(map(len, shallow)) == 3
    assert (1, 4) not in shallow  # the second column would end too deep


def simulated(target: Target, start: list[int], steps: int, depth: int = 4) -> tuple[list[int], Window]:
    """How many tokens each step gave under ``match``, and the window behind the last one."""
    window, text, gained = Window(1, width=3, length=3, most=3), list(start), []
    for _ in range(steps):
        trie = window.draft(np.array(text, dtype=np.int32), depth)
        paths = paths_of(trie)
        assert max(map(len, paths)) <= depth
        assert len({tuple(path) for path in paths}) == len(paths)
        samples = [target([*text, *path]) for path in [[], *paths]]
        node, accepted, new = -1, 0, [samples[0]]
        children = {
            (parent, token): child for child, (parent, token) in enumerate(zip(trie.parents, trie.tokens, strict=True))
        }
        while (child := children.get((node, new[-1]))) is not None:
            node, accepted = child, accepted + 1
            new.append(samples[node + 1])
        text += new
        window.learn(samples, accepted)
        gained.append(len(new))
    return gained, window


def of_last_token(text: list[int]) -> int:
    return (5 * text[-1] + 3) % 31


def of_last_two(text: list[int]) -> int:
    return (text[-1] + text[-2]) % 7


@pytest.mark.parametrize("target", [of_last_token, of_last_two])
def test_the_window_comes_to_know_a_target_that_repeats_itself(target: Target) -> None:
    gained, _ = simulated(target, [1, 2, 3], 60)
    assert np.mean(gained[20:]) > 2


def grams_are_what_the_target_says() -> None:
    _, window = simulated(of_last_token, [1, 2, 3], 40)
    assert len(window.pool) > 5
    assert all(gram[-1] == of_last_token([gram[-2]]) for grams in window.pool.values() for gram in grams)


def test_grams_end_with_what_the_target_says_behind_them() -> None:
    grams_are_what_the_target_says()


def test_samples_of_other_nodes_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the row before a node's own gathers n-grams that the target never says."""
    true = Window.learn
    monkeypatch.setattr(Window, "learn", lambda self, samples, accepted: true(self, [-1, *samples], accepted))
    with pytest.raises(AssertionError):
        grams_are_what_the_target_says()


def test_columns_that_do_not_move_with_the_text_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def a_target_of_places(text: list[int]) -> int:
        return len(text)

    def guesses_are_where_they_belong() -> None:
        """A target whose token is its place: after two steps every guess in the window is the token of its place."""
        window, text = Window(1, width=3, length=3, most=3), [0, 1, 2]
        for step in range(8):
            trie = window.draft(np.array(text, dtype=np.int32), 4)
            if step > 2:
                for place, column in enumerate(window.columns[:1], len(text)):
                    assert column == (place, place + 1)
            samples = [a_target_of_places([*text, *path]) for path in [[], *paths_of(trie)]]
            window.learn(samples, 0)
            text.append(samples[0])

    guesses_are_where_they_belong()
    true = Window.learn
    monkeypatch.setattr(Window, "learn", lambda self, samples, accepted: true(self, samples, accepted + 1))
    with pytest.raises(AssertionError):
        guesses_are_where_they_belong()


def test_the_pool_is_bounded() -> None:
    window = Window(0, width=1, length=2, most=2)
    for number in range(2 * MAX_KEYS):
        for follower in (1, 2, 1, 3):
            window._keep(number, (follower,))
    assert len(window.pool) == MAX_KEYS
    assert window.pool[2 * MAX_KEYS - 1] == [(3,), (1,)]


LOOKAHEAD: dict[str, Any] = {"method": "lookahead", "num_speculative_tokens": 4}


def test_seats_are_forgotten_and_text_stays_the_same(llama: Models) -> None:  # noqa: F811
    jobs = [Job(PROMPT, PARAMS), Job(PROMPT[:4], PARAMS)]
    engine = llama.engine(LOOKAHEAD)
    assert run(engine, jobs, hook=preempt_every(3)) == run(llama.engine(), jobs)
    inner = engine.proposer.inner
    assert isinstance(inner, LookaheadProposer)
    assert not inner._windows
    assert engine.counters.num_drafted > 0
    assert engine.proposer.counters.num_rejected_drafts == engine.proposer.counters.num_failures == 0


def test_grams_that_no_draft_can_hold_are_refused_with_the_depth_that_suits(llama: Models) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match=r"no 6-gram .* 4 deep\n.*num_speculative_tokens to 7, .*window 3"):
        llama.engine({**LOOKAHEAD, "lookahead_ngram": 6})
    llama.engine({**LOOKAHEAD, "lookahead_ngram": 5})


def test_grams_come_of_the_engines_own_rows(llama: Models) -> None:  # noqa: F811
    """What a real target samples behind the window's columns makes drafts right now and then."""
    jobs = [Job(PROMPT, SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)), Job(PROMPT[:4], PARAMS)]
    engine = llama.engine({**LOOKAHEAD, "lookahead_window": 5, "num_speculative_tokens": 6})
    assert run(engine, jobs) == run(llama.engine(), jobs)
    assert 0 < engine.counters.num_accepted < engine.counters.num_drafted


@pytest.mark.parametrize(
    ("name", "value"), [("lookahead_window", 0), ("lookahead_ngram", 1), ("lookahead_guesses", 65)]
)
def test_options_out_of_range_are_named(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=name):
        SpeculativeConfig.of({"method": "lookahead", name: value})
