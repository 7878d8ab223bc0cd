"""Lookahead decoding (2402.02057): a window of guesses that the target improves, and n-grams gathered from it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from paceline.core.batch import Int32, Verdict
from paceline.core.config import SpeculativeConfig
from paceline.core.errors import ConfigError
from paceline.core.step import DraftTrees, StepPlan
from paceline.models import CausalLM
from paceline.speculation.base import ProposerNeeds, ProposerTools, proposers

MAX_KEYS = 4096
"""Tokens of a request behind which n-grams are kept; of more, those that were met longest ago are dropped."""

Gram = tuple[int, ...]


class Trie:
    """Nodes by path: what begins alike is one node."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def add(self, parent: int, tokens: Sequence[int]) -> int:
        """Adds a path below a node, -1 being the last known token; returns its last node."""
        for token in tokens:
            node = self._children.setdefault((parent, token), len(self.tokens))
            if node == len(self.tokens):
                self.tokens.append(token)
                self.parents.append(parent)
            parent = node
        return parent


class Window:
    """The guesses of one request, and the n-grams that came of them.

    Column i of W is a stretch of N - 1 tokens, guessed to stand i + 1 places behind the last known token; the tokens
    before it are guessed to be the first ones of the columns before it. So the first tokens are a chain, and each has
    the rest of its column as a branch. What the target samples at the end of a column is its next token: the column
    loses its first one and stands a place further on, where it was to be after a step.
    """

    def __init__(self, seed: int, *, width: int, length: int, most: int) -> None:
        self.width, self.length, self.most = width, length, most
        self.columns: list[Gram] = []
        self.pool: OrderedDict[int, list[Gram]] = OrderedDict()
        self._random = np.random.default_rng(seed % 2**64)
        self._ends: list[int] = []

    def draft(self, known: Int32, depth: int) -> Trie:
        """The n-grams behind the last one of known tokens [n], and as much of the window as ``depth`` allows."""
        trie = Trie()
        for gram in self.pool.get(int(known[-1]), ()):
            trie.add(-1, gram[:depth])
        while len(self.columns) < self.width:
            places = self._random.integers(0, len(known), size=self.length - 1)
            self.columns.append(tuple(known[places].tolist()))
        node, self._ends = -1, []
        for column in self.columns[: max(0, depth - self.length + 2)]:
            node = trie.add(node, column[:1])
            self._ends.append(trie.add(node, column[1:]))
        return trie

    def learn(self, samples: Sequence[int], num_accepted: int) -> None:
        """Takes what was sampled behind the last known token and behind each node; -1 where nothing was."""
        moved = []
        for column, end in zip(self.columns, self._ends, strict=False):
            found = samples[end + 1]
            if found < 0:
                break
            self._keep(column[0], (*column[1:], found))
            moved.append((*column[1:], found))
        self.columns = moved[num_accepted:]
        self._ends = []

    def _keep(self, token: int, gram: Gram) -> None:
        grams = self.pool.setdefault(token, [])
        self.pool.move_to_end(token)
        if gram in grams:
            grams.remove(gram)
        grams.insert(0, gram)
        del grams[self.most :]
        if len(self.pool) > MAX_KEYS:
            self.pool.popitem(last=False)


class LookaheadProposer:
    """Point-mass trees, free of any model: n-grams to be accepted, and the window's rows, from which n-grams come."""

    needs = ProposerNeeds(makes_trees=True)

    def __init__(self, config: SpeculativeConfig) -> None:
        self.width, self.length, self.most = config.lookahead_window, config.lookahead_ngram, config.lookahead_guesses
        if self.length - 1 > config.num_speculative_tokens:
            needed = self.width + self.length - 2
            raise ConfigError(
                f"no {self.length}-gram can be guessed in drafts {config.num_speculative_tokens} deep\n"
                f"Set num_speculative_tokens to {needed}, which suits lookahead_window {self.width}."
            )
        self._windows: dict[int, Window] = {}

    def bind(self, tools: ProposerTools) -> None:
        self.seats = tools.seats

    def num_nodes(self, depth: int) -> int:
        columns = max(0, min(self.width, depth - self.length + 2))
        return self.most * min(self.length - 1, depth) + columns * (self.length - 1)

    def propose(self, plan: StepPlan) -> DraftTrees:
        width = self.num_nodes(int(plan.draft_depth.max(initial=0)))
        tokens, counts = np.zeros((len(plan), width), dtype=np.int32), np.zeros(len(plan), dtype=np.int32)
        parents = np.full((len(plan), width), -1, dtype=np.int32)
        for number in np.flatnonzero(plan.draft_depth > 0).tolist():
            seat = int(plan.seats[number])
            known = self.seats.tokens[seat, : self.seats.num_tokens[seat]]
            trie = self._window(seat, plan.requests[number].seed).draft(known, int(plan.draft_depth[number]))
            counts[number] = count = len(trie.tokens)
            tokens[number, :count], parents[number, :count] = trie.tokens, trie.parents
        return DraftTrees(tokens, parents, counts)

    def _window(self, seat: int, seed: int) -> Window:
        window = self._windows.get(seat)
        if window is None:
            window = self._windows[seat] = Window(seed, width=self.width, length=self.length, most=self.most)
        return window

    def observe(self, plan: StepPlan, verdict: Verdict) -> None:
        if verdict.samples is None:
            return
        for number, seat in enumerate(plan.seats.tolist()):
            window = self._windows.get(seat)
            if window is not None and plan.draft_depth[number] > 0:
                window.learn(verdict.samples[number].tolist(), len(verdict.path[number]))

    def forget(self, seat: int) -> None:
        self._windows.pop(seat, None)


@proposers.add("lookahead")
def build(config: SpeculativeConfig, _target: CausalLM, _load: Callable[[str], CausalLM]) -> LookaheadProposer:
    return LookaheadProposer(config)
