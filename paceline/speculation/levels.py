"""Knows how a model drafts level by level: a chain that is sampled, or a tree of the likeliest paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from paceline.core.batch import Verdict
from paceline.core.config import SpeculativeConfig
from paceline.core.step import StepPlan
from paceline.runner import GraphBuilder, RowSpec
from paceline.speculation.base import ProposerTools


@dataclass(frozen=True, slots=True)
class DraftShape:
    """How wide and how large a draft becomes."""

    top_k: int = 1
    """Nodes of a level; 1: a chain of samples, which share the target's noise."""
    max_nodes: int | None = None
    """Nodes of a tree that are left to be verified, the likeliest; None: all."""

    @staticmethod
    def of(config: SpeculativeConfig) -> DraftShape:
        return DraftShape(config.draft_top_k, config.draft_max_nodes)

    @property
    def makes_trees(self) -> bool:
        return self.top_k > 1

    def num_nodes(self, depth: int) -> int:
        """Nodes that are grown."""
        return self.top_k * depth

    def level(self, number: int, *, first_slot: int) -> RowSpec:
        """The rows of the nodes of a level, from 0."""
        return RowSpec(known=False, first_node=number * self.top_k, num_nodes=self.top_k, first_slot=first_slot)

    def extend(self, graph: GraphBuilder, logits: Any, rows: Any, *, shared: bool = False) -> None:
        """Takes the next level from what a model says behind the last one."""
        if self.makes_trees:
            graph.extend_tree(logits, rows, self.top_k, shared=shared)
        else:
            graph.extend(graph.sample(logits, rows))

    def prune(self, graph: GraphBuilder, depth: int) -> None:
        """Of the levels together."""
        if self.max_nodes is not None and self.makes_trees and self.max_nodes < self.num_nodes(depth):
            graph.prune(self.max_nodes)


@dataclass(frozen=True, slots=True)
class FedLevel:
    """A level's rows, and what a pass over them gave."""

    rows: Any
    found: Any


class LevelProposer:
    """Drafts level by level with one model; what proposers of other stages take over of it is all but ``draft``."""

    shape: DraftShape
    first = RowSpec()
    """The rows before the first level: the known tokens that the model's cache lacks."""

    def bind(self, tools: ProposerTools) -> None:
        self.runner = tools.runner

    def forward(self, graph: GraphBuilder, rows: Any, before: FedLevel | None) -> Any:  # noqa: ARG002
        """The pass over the rows of a level; ``before`` is the level that it goes on from, None the first rows."""
        return graph.forward(rows)

    def draft(self, graph: GraphBuilder, depth: int) -> None:
        """Of a draft of k levels, k - 1 are forwarded: the last needs no successor."""
        rows = graph.place(self.runner, self.first)
        level = FedLevel(rows, self.forward(graph, rows, None))
        for number in range(depth):
            if number:
                rows = graph.place(self.runner, self.shape.level(number - 1, first_slot=self.first.first_slot))
                level = FedLevel(rows, self.forward(graph, rows, level))
            self.shape.extend(graph, level.found.logits, level.rows)
        self.shape.prune(graph, depth)

    def num_nodes(self, depth: int) -> int:
        return self.shape.num_nodes(depth)

    def observe(self, plan: StepPlan, verdict: Verdict) -> None:
        """Nothing is learned from what was accepted."""

    def forget(self, seat: int) -> None:
        """Nothing is kept by seat."""
