"""Suffix decoding (2411.04975): continues the longest earlier occurrence of a text's end, as it went on most often."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable

import numpy as np

from paceline.core.batch import Int32, Verdict
from paceline.core.config import SpeculativeConfig
from paceline.core.request import FinishReason, Request
from paceline.core.step import DraftTrees, StepPlan
from paceline.models import CausalLM
from paceline.speculation.base import ProposerNeeds, ProposerTools, proposers
from paceline.speculation.occurrences import BORDER, Occurrences
from paceline.speculation.verify import verifiers

MAX_CORPUS_TOKENS = 2**20
"""Of finished answers, a power of two; they take at most 72 bytes a token."""


class AnswerCorpus:
    """Finished answers in one ring, the oldest falling out. What belongs to one salt is found under that salt alone."""

    def __init__(self, max_answers: int, max_tokens: int = MAX_CORPUS_TOKENS) -> None:
        self.max_answers, self.max_tokens = max_answers, max_tokens
        self.text = Occurrences(max_tokens)
        self._answers: deque[tuple[str, int]] = deque()  # salt, position behind the last token
        self._owners: dict[str, int] = {}
        self._held = Counter[str]()
        self._num_owners = 0

    def __len__(self) -> int:
        return len(self._answers)

    def owner(self, salt: str) -> int | None:
        """The number under which a salt's answers are filed; None if there are none."""
        return self._owners.get(salt)

    def add(self, salt: str, tokens: list[int]) -> None:
        """Takes in an answer; of one that is longer than the corpus, the end."""
        kept = tokens[-(self.max_tokens - 1) :]
        if len(kept) < 2:
            return  # nothing follows anything there
        while self._answers and (
            len(self._answers) >= self.max_answers
            or self.text.num_tokens + len(kept) + 1 - self.text.oldest > self.max_tokens
        ):
            self._evict()
        if salt not in self._owners:
            self._num_owners = self._owners[salt] = self._num_owners % (2**31 - 1) + 1
        self.text.extend([*kept, BORDER], self._owners[salt])
        self._answers.append((salt, self.text.num_tokens))
        self._held[salt] += 1

    def _evict(self) -> None:
        salt, end = self._answers.popleft()
        self.text.evict(end)
        self._held[salt] -= 1
        if not self._held[salt]:
            del self._held[salt], self._owners[salt]


def likeliest_tree(
    continuations: list[list[int]], max_nodes: int, min_prob: float, *, branches: bool
) -> tuple[list[int], list[int]]:
    """The nodes that most of the continuations pass, as (tokens, parents).

    A node's probability is the part of all continuations that pass it; of equals the one seen first comes first.
    Without ``branches`` each node has one child at most.
    """
    tokens: list[int] = []
    parents: list[int] = []
    total, order = len(continuations), 0
    heap: list[tuple[int, int, int, int, list[list[int]]]] = []  # -count, order, token, parent, those that pass
    passing, depth, depths = continuations, 0, [0]
    while True:
        followers: dict[int, list[list[int]]] = {}
        for line in passing if depth < len(passing[0]) else ():
            followers.setdefault(line[depth], []).append(line)
        followers.pop(BORDER, None)
        children = sorted(followers.items(), key=lambda child: -len(child[1]))
        for token, lines in children if branches else children[:1]:
            if len(lines) >= min_prob * total:
                heapq.heappush(heap, (-len(lines), order, token, len(tokens) - 1, lines))
                order += 1
        if not heap or len(tokens) >= max_nodes:
            return tokens, parents
        _, _, token, parent, passing = heapq.heappop(heap)
        tokens.append(token)
        parents.append(parent)
        depth = depths[parent + 1] + 1
        depths.append(depth)


class SuffixProposer:
    """Point-mass drafts, free of any model, from the request's own text and from finished answers of its salt."""

    def __init__(self, config: SpeculativeConfig) -> None:
        verifier = verifiers[config.verifier]
        self.needs = ProposerNeeds(makes_trees=verifier.takes_trees)
        self.config = config
        self._texts: dict[int, Occurrences] = {}
        # A verifier that does not keep the text promises that a seed repeats itself, whatever others were answered.
        most = config.suffix_decoding_max_cached_requests if verifier.keeps_text else 0
        self.corpus = AnswerCorpus(most) if most else None

    def bind(self, tools: ProposerTools) -> None:
        self.seats = tools.seats

    def num_nodes(self, depth: int) -> int:
        return depth

    def propose(self, plan: StepPlan) -> DraftTrees:
        width = int(plan.draft_depth.max(initial=0))
        shape = (len(plan), width)
        tokens, parents = (
            np.zeros(shape, dtype=np.int32),
            np.tile(np.arange(-1, width - 1, dtype=np.int32), (shape[0], 1)),
        )
        counts = np.zeros(len(plan), dtype=np.int32)
        for number in np.flatnonzero(plan.draft_depth > 0).tolist():
            found, above = self._draft(plan.requests[number], int(plan.seats[number]), int(plan.draft_depth[number]))
            counts[number] = count = len(found)
            tokens[number, :count], parents[number, :count] = found, above
        return DraftTrees(tokens, parents, counts)

    def _draft(self, request: Request, seat: int, budget: int) -> tuple[list[int], list[int]]:
        config = self.config
        end = int(self.seats.num_tokens[seat])
        text = self._texts.setdefault(seat, Occurrences())
        text.extend(self.seats.tokens[seat, text.num_tokens : end].tolist())
        most, factor = config.suffix_decoding_max_tree_depth, config.suffix_decoding_max_spec_factor
        budget = min(budget, max(1, int(most * factor / (1 + factor))))
        longest = max(1, most - budget)
        tail: Int32 = self.seats.tokens[seat, max(0, end - longest) : end]
        length, ends = text.matches(tail)
        sources = [(text, ends)] if length else []
        owner = self.corpus.owner(request.group.cache_salt) if self.corpus is not None else None
        if self.corpus is not None and owner is not None:
            others, ends = self.corpus.text.matches(tail, owner)
            if others and others >= length:
                sources = [*(sources if others == length else []), (self.corpus.text, ends)]
                length = others
        nodes = min(budget, int(length * factor))
        if nodes < 1:
            return [], []
        lines = [line for source, found in sources for line in source.continuations(found, nodes).tolist()]
        return likeliest_tree(lines, nodes, config.suffix_decoding_min_token_prob, branches=self.needs.makes_trees)

    def observe(self, plan: StepPlan, verdict: Verdict) -> None:  # noqa: ARG002
        if self.corpus is None:
            return
        for request in plan.requests:
            ended = request.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
            if ended and request.group.speculate:
                self.corpus.add(request.group.cache_salt, request.output_token_ids)

    def forget(self, seat: int) -> None:
        self._texts.pop(seat, None)


@proposers.add("suffix")
def build(config: SpeculativeConfig, _target: CausalLM, _load: Callable[[str], CausalLM]) -> SuffixProposer:
    return SuffixProposer(config)
