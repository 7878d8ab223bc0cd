"""Suffix decoding: matches and counts are brute force's, cost is linear, memory bounded, and salts share nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from paceline.core.call import CallOptions
from paceline.core.config import SpeculativeConfig
from paceline.core.errors import ConfigError
from paceline.engine.input_processor import InputProcessor
from paceline.speculation import SuffixProposer
from paceline.speculation.occurrences import BORDER, LEVELS, MOST, Occurrences
from paceline.speculation.suffix import AnswerCorpus, likeliest_tree
from tests.invariance.conftest import llama  # noqa: F401 - a fixture
from tests.speculation.salts import PARAMS, PROMPT, drafts_of, salts_share_nothing
from tests.support.engines import Job, Models, preempt_every, run

Text = list[tuple[int, int]]
"""(token, owner)"""


def brute_force(text: Text, oldest: int, tail: list[int], owner: int) -> tuple[int, list[int]]:
    """The longest match and its positions, the latest first, by comparing everything with everything."""
    lengths = {}
    for end in range(oldest, len(text) - 1):
        if text[end + 1][0] == BORDER or text[end][1] != owner:
            continue
        length = 0
        while length < len(tail) and end - length >= oldest and text[end - length][0] == tail[-1 - length]:
            length += 1
        if length:
            lengths[end] = length
    longest = max(lengths.values(), default=0)
    return longest, sorted((end for end, length in lengths.items() if length == longest), reverse=True)


def tail_of(tokens: list[int], most: int) -> Any:
    return np.array(tokens[-most:], dtype=np.int32)


@pytest.mark.parametrize("vocab_size", [1, 2, 3, 9])
def test_matches_are_those_of_brute_force(vocab_size: int) -> None:
    random = np.random.default_rng(vocab_size)
    for _ in range(12):
        text, tokens = Occurrences(), list[int]()
        while len(tokens) < MOST - 6:
            some = random.integers(0, vocab_size, size=random.integers(1, 6)).tolist()
            text.extend(some)
            tokens += some
            tail = tail_of(tokens, 20)
            length, ends = text.matches(tail)
            assert (length, ends.tolist()) == brute_force([(t, 0) for t in tokens], 0, tail.tolist(), 0)
            following = [[*tokens, BORDER, BORDER, BORDER][end + 1 : end + 4] for end in ends]
            assert text.continuations(ends, 3).tolist() == following


@pytest.mark.parametrize("capacity", [16, 64])
def test_a_ring_knows_what_is_left_of_it_and_whose_that_is(capacity: int) -> None:
    random = np.random.default_rng(capacity)
    text, known = Occurrences(capacity), Text()
    for _ in range(120):
        owner, some = int(random.integers(1, 4)), [*random.integers(0, 3, size=random.integers(1, 9)).tolist(), BORDER]
        text.extend(some, owner)
        known += [(token, owner) for token in some]
        for asked in (1, 2, 3):
            tail = random.integers(0, 3, size=9).astype(np.int32)
            length, ends = text.matches(tail, asked)
            oldest = max(0, len(known) - capacity)
            assert (length, ends.tolist()) == brute_force(known, oldest, tail.tolist(), asked)


def test_a_million_tokens_cost_four_links_each_and_no_more_memory_than_the_ring() -> None:
    capacity, tokens = 2**16, np.random.default_rng(0).integers(0, 50, size=1_000_000)
    tokens[300_000:400_000] = 7  # the worst case of trees: a text that repeats itself
    text = Occurrences(capacity)
    for start in range(0, len(tokens), 1000):
        text.extend(tokens[start : start + 1000].tolist(), 1)
    assert text.num_links == len(LEVELS) * len(tokens)
    assert {len(column) for column in (text._tokens, text._owners, *text._links, *text._heads)} == {capacity}
    assert text.matches(tokens[-9_020:-9_000].astype(np.int32), 1) == (20, np.array([len(tokens) - 9_001]))
    length, _ = text.matches(tokens[500_000:500_020].astype(np.int32), 1)
    assert length < 20, "what has fallen out of the ring was found"


def test_no_match_looks_at_more_than_its_share() -> None:
    text = Occurrences()
    text.extend([5] * 50_000)
    length, ends = text.matches(np.full(20, 5, dtype=np.int32))
    assert (length, len(ends), int(ends[0])) == (20, MOST, 49_998)


def paths_of(tokens: list[int], parents: list[int]) -> list[tuple[int, ...]]:
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(tokens, parents, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    return paths


def test_trees_hold_the_paths_that_most_continuations_take() -> None:
    random = np.random.default_rng(4)
    for _ in range(200):
        lines = random.integers(-1, 3, size=(random.integers(1, 12), 4)).tolist()
        nodes, least = int(random.integers(1, 9)), float(random.choice([0.0, 0.1, 0.3]))
        counts = Counter(tuple(line[:depth]) for line in lines for depth in range(1, 5) if BORDER not in line[:depth])
        able = sorted((count for count in counts.values() if count >= least * len(lines)), reverse=True)
        paths = paths_of(*likeliest_tree(lines, nodes, least, branches=True))
        assert len(set(paths)) == len(paths)
        assert [counts[path] for path in paths] == able[:nodes]
        _, parents = likeliest_tree(lines, nodes, least, branches=False)
        assert parents == list(range(-1, len(parents) - 1))


def test_the_oldest_answers_make_room() -> None:
    corpus = AnswerCorpus(max_answers=3, max_tokens=64)
    for number in range(5):
        corpus.add(f"salt {number % 2}", list(range(10 * number, 10 * number + 10)))
    found = [
        corpus.text.matches(np.array([n * 10 + 4], dtype=np.int32), corpus.owner(f"salt {n % 2}") or 0)[0]
        for n in range(5)
    ]
    assert (len(corpus), found) == (3, [0, 0, 1, 1, 1])
    corpus.add("long", list(range(200)))
    assert len(corpus) == 1
    assert corpus.owner("salt 0") is corpus.owner("salt 1") is None
    owner = corpus.owner("long")
    assert owner is not None
    assert corpus.text.matches(np.array([198], dtype=np.int32), owner)[0] == 1
    assert corpus.text.matches(np.array([130], dtype=np.int32), owner)[0] == 0


SUFFIX = {"method": "suffix", "num_speculative_tokens": 6}


def test_drafts_come_of_answers_of_the_same_salt_alone(llama: Models) -> None:  # noqa: F811
    salts_share_nothing(llama, SUFFIX)


def test_a_corpus_without_salts_is_caught(llama: Models, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    true = AnswerCorpus.add
    monkeypatch.setattr(AnswerCorpus, "add", lambda self, _salt, tokens: true(self, "", tokens))
    monkeypatch.setattr(AnswerCorpus, "owner", lambda self, _salt: self._owners.get(""))
    with pytest.raises(AssertionError):
        salts_share_nothing(llama, SUFFIX)


@pytest.mark.parametrize(
    "options", [{"suffix_decoding_max_cached_requests": 0}, {"verifier": "token"}, {"verifier": "block"}], ids=str
)
def test_without_a_corpus_answers_leave_nothing_behind(options: dict[str, Any], llama: Models) -> None:  # noqa: F811
    first, again = drafts_of(llama, {**SUFFIX, **options}, ["a", "a"])
    assert first == again


def test_seats_are_forgotten_and_aborted_answers_are_not_kept(llama: Models) -> None:  # noqa: F811
    engine = llama.engine({"method": "suffix"})
    run(engine, [Job(PROMPT, PARAMS), Job(PROMPT[:4], PARAMS)], hook=preempt_every(3))
    proposer = engine.proposer.inner
    assert isinstance(proposer, SuffixProposer)
    assert proposer.corpus is not None
    assert (len(proposer._texts), len(proposer.corpus)) == (0, 2)
    group = InputProcessor(engine, None).group(list(PROMPT), PARAMS, options=CallOptions())
    engine.add(group)
    for _ in range(3):
        engine.step()
    assert len(proposer._texts) == 1
    engine.abort(group)
    engine.step()
    assert (len(proposer._texts), len(proposer.corpus)) == (0, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("suffix_decoding_max_tree_depth", 1),
        ("suffix_decoding_max_cached_requests", -1),
        ("suffix_decoding_max_spec_factor", 0.0),
        ("suffix_decoding_min_token_prob", 1.5),
    ],
)
def test_options_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        SpeculativeConfig.of({"method": "suffix", name: value})
