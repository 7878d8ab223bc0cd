"""Token recycling (2408.08696): drafts a fixed tree from a table of what last seemed likely behind each token."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from paceline.core.batch import Int32, Verdict
from paceline.core.config import SpeculativeConfig
from paceline.core.errors import ConfigError
from paceline.core.request import Request
from paceline.core.step import DraftTrees, StepPlan
from paceline.models import CausalLM
from paceline.speculation.base import ProposerNeeds, ProposerTools, proposers
from paceline.speculation.verify import verifiers

MAX_TABLES = 8
"""Salts that keep a table; of more, the one that was used longest ago is dropped."""
NEXT_RANK = 0.4
"""How often a token's successor of one rank is right, as a part of how often that of the rank before it is."""
FIRST_RANK = 0.6
"""How often the first one is right."""
NONE = -1


@dataclass(frozen=True, slots=True)
class TreeShape:
    """A tree of successors, level by level: node i is the successor of rank ``ranks[i]`` of its parent's token."""

    parents: Int32  # [N]
    ranks: Int32  # [N]
    levels: tuple[slice, ...]


@lru_cache(256)
def tree_shape(num_nodes: int, depth: int, num_ranks: int) -> TreeShape:
    """The ``num_nodes`` likeliest nodes of at most ``depth`` levels, of equals the shallowest and first."""
    paths: list[tuple[int, ...]] = []
    heap: list[tuple[float, tuple[int, ...]]] = [(-FIRST_RANK, (0,))]
    while heap and len(paths) < num_nodes:
        cost, path = heapq.heappop(heap)
        paths.append(path)
        if path[-1] + 1 < num_ranks:
            heapq.heappush(heap, (cost * NEXT_RANK, (*path[:-1], path[-1] + 1)))
        if len(path) < depth:
            heapq.heappush(heap, (cost * FIRST_RANK, (*path, 0)))
    paths.sort(key=lambda path: (len(path), path))
    number = {path: node for node, path in enumerate(paths)}
    parents = np.array([number.get(path[:-1], NONE) for path in paths], dtype=np.int32)
    ranks = np.array([path[-1] for path in paths], dtype=np.int32)
    lengths = np.array([len(path) for path in paths])
    starts = [int(np.searchsorted(lengths, length)) for length in range(1, int(lengths.max()) + 2)]
    return TreeShape(parents, ranks, tuple(slice(*ends) for ends in pairwise(starts)))


class SuccessorTable:
    """``successors`` int32[V, k]: for each token the likeliest next ones when it was last seen, best first."""

    def __init__(self, vocab_size: int, num_ranks: int) -> None:
        self.successors = np.full((vocab_size, num_ranks), NONE, dtype=np.int32)

    def learn(self, tokens: Int32, best: Int32) -> None:
        """Files rows best [n, k] behind tokens [n]; of equal tokens the last one stands."""
        self.successors[tokens, : best.shape[1]] = best

    def note(self, token: int, follower: int) -> None:
        """Moves what followed a token to the front, where nothing is known of likelier ones."""
        row: list[int] = self.successors[token].tolist()
        if row[0] != follower:
            self.successors[token] = [follower, *(other for other in row if other != follower)][: len(row)]

    def expand(self, last: int, shape: TreeShape) -> tuple[Int32, Int32]:
        """The tree behind a token, without what the table does not know: (tokens, parents)."""
        tokens = np.empty(len(shape.parents) + 1, dtype=np.int32)
        tokens[NONE] = last
        for level in shape.levels:
            above = tokens[shape.parents[level]]
            tokens[level] = np.where(above < 0, NONE, self.successors[above, shape.ranks[level]])
        known = tokens[:-1] >= 0
        place = np.append(np.cumsum(known, dtype=np.int32) - 1, np.int32(NONE))
        return tokens[:-1][known], place[shape.parents[known]]


class TokenRecyclingProposer:
    """Point-mass trees from one table per salt, which all requests of that salt read and write."""

    def __init__(self, config: SpeculativeConfig, vocab_size: int) -> None:
        self.vocab_size, self.most = vocab_size, config.token_recycling_nodes
        self.num_ranks = min(config.token_recycling_successors, vocab_size)
        self.needs = ProposerNeeds(makes_trees=True, num_best=self.num_ranks)
        self.tables: OrderedDict[str, SuccessorTable] = OrderedDict()
        self._drafts: DraftTrees | None = None

    def bind(self, tools: ProposerTools) -> None:
        self.seats = tools.seats

    def num_nodes(self, depth: int) -> int:
        return len(tree_shape(self.most, depth, self.num_ranks).parents)

    def propose(self, plan: StepPlan) -> DraftTrees:
        drafted = np.flatnonzero(plan.draft_depth > 0).tolist()
        width = self.num_nodes(int(plan.draft_depth.max())) if drafted else 0
        tokens, counts = np.zeros((len(plan), width), dtype=np.int32), np.zeros(len(plan), dtype=np.int32)
        parents = np.full((len(plan), width), NONE, dtype=np.int32)
        last = self._last(plan).tolist()
        for number in drafted:
            shape = tree_shape(self.most, int(plan.draft_depth[number]), self.num_ranks)
            found, above = self._table(plan.requests[number]).expand(last[number], shape)
            counts[number] = count = len(found)
            tokens[number, :count], parents[number, :count] = found, above
        self._drafts = DraftTrees(tokens, parents, counts)
        return self._drafts

    def _last(self, plan: StepPlan) -> Int32:
        last: Int32 = self.seats.tokens[plan.seats, plan.end - 1]
        return last

    def _table(self, request: Request) -> SuccessorTable:
        salt = request.group.cache_salt
        table = self.tables.get(salt)
        if table is None:
            table = self.tables[salt] = SuccessorTable(self.vocab_size, self.num_ranks)
            if len(self.tables) > MAX_TABLES:
                self.tables.popitem(last=False)
        self.tables.move_to_end(salt)
        return table

    def observe(self, plan: StepPlan, verdict: Verdict) -> None:
        drafts, self._drafts = self._drafts, None
        last, best = self._last(plan), verdict.best
        for number, request in enumerate(plan.requests):
            new = verdict.tokens[number]
            if not new or not request.group.speculate:
                continue
            table = self._table(request)
            for token, follower in pairwise([int(last[number]), *new]):
                table.note(token, follower)
            if best is not None and plan.num_rounds == 1:  # else it is of the last round alone, wherever that began
                nodes = best.shape[1] - 1
                drafted = drafts.tokens[number, :nodes] if drafts is not None and nodes else last[:0]
                before = np.concatenate([last[number : number + 1], drafted])
                sampled = best[number, : len(before), 0] >= 0
                table.learn(before[sampled], best[number, : len(before)][sampled])

    def forget(self, seat: int) -> None:
        pass


@proposers.add("token_recycling")
def build(config: SpeculativeConfig, target: CausalLM, _load: Callable[[str], CausalLM]) -> TokenRecyclingProposer:
    if not verifiers[config.verifier].keeps_text:
        raise ConfigError(
            f"under the {config.verifier} verifier texts hang on drafts, and token_recycling drafts from what "
            'other calls were answered\nSet speculative_config["verifier"] to match.'
        )
    return TokenRecyclingProposer(config, target.config.vocab_size)
