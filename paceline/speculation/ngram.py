"""Prompt lookup: finds the last n-gram earlier in the sequence and proposes what followed it there."""

from __future__ import annotations

import numpy as np

from paceline.core.batch import Verdict
from paceline.core.config import SpeculativeConfig
from paceline.core.step import DraftTrees, StepPlan
from paceline.models import CausalLM
from paceline.speculation.base import DraftLoader, ProposerNeeds, ProposerTools, proposers


class NgramIndex:
    """Where each n-gram of one sequence first occurred; constant time per token, for every length in [low, high]."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high
        self.tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}

    def extend(self, tokens: list[int]) -> None:
        """Adds known tokens. An n-gram is filed once its successor is known, so that it never finds itself."""
        for token in tokens:
            position = len(self.tokens)
            for length in range(self.low, min(self.high, position) + 1):
                self._after.setdefault(tuple(self.tokens[position - length :]), position)
            self.tokens.append(token)

    def lookup(self, count: int) -> list[int]:
        """Up to ``count`` tokens that followed the sequence's last n-gram: longest n first, earliest occurrence."""
        for length in range(min(self.high, len(self.tokens)), self.low - 1, -1):
            found = self._after.get(tuple(self.tokens[-length:]))
            if found is not None:
                return self.tokens[found : found + count]
        return []


class NgramProposer:
    """Point-mass chains, free of any model."""

    needs = ProposerNeeds()

    def __init__(self, config: SpeculativeConfig) -> None:
        self.low, self.high = config.prompt_lookup_min, config.prompt_lookup_max
        self._indexes: dict[int, NgramIndex] = {}

    def bind(self, tools: ProposerTools) -> None:
        self.seats = tools.seats

    def num_nodes(self, depth: int) -> int:
        return depth

    def propose(self, plan: StepPlan) -> DraftTrees:
        width = int(plan.draft_depth.max(initial=0))
        tokens = np.zeros((len(plan), width), dtype=np.int32)
        counts = np.zeros(len(plan), dtype=np.int32)
        for number in np.flatnonzero(plan.draft_depth > 0).tolist():
            found = self._index(int(plan.seats[number])).lookup(int(plan.draft_depth[number]))
            tokens[number, : len(found)] = found
            counts[number] = len(found)
        return DraftTrees.chains(tokens, counts)

    def _index(self, seat: int) -> NgramIndex:
        index = self._indexes.setdefault(seat, NgramIndex(self.low, self.high))
        index.extend(self.seats.tokens[seat, len(index.tokens) : self.seats.num_tokens[seat]].tolist())
        return index

    def observe(self, plan: StepPlan, verdict: Verdict) -> None:
        pass

    def forget(self, seat: int) -> None:
        self._indexes.pop(seat, None)


@proposers.add("ngram")
def build(config: SpeculativeConfig, _target: CausalLM, _load: DraftLoader) -> NgramProposer:
    return NgramProposer(config)
