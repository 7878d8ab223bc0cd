"""Proposers for tests: trees that are sometimes right, and drafters that misbehave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from paceline.core.batch import Verdict
from paceline.core.config import SpeculativeConfig
from paceline.core.step import DraftTrees, StepPlan
from paceline.layers.linear import Linear
from paceline.layers.placement import Placement
from paceline.models import CausalLM
from paceline.models.base import Entry
from paceline.runner import GraphBuilder, KeptFeatures, RowSpec
from paceline.speculation import ProposerNeeds, ProposerTools, proposers

Key = tuple[tuple[int, ...], int]

TRUTH: dict[Key, list[int]] = {}
"""(prompt, sample index) -> the tokens that plain decoding gave; lets a random tree be right now and then."""


class RandomTreeProposer:
    """Random trees of up to ``nodes`` nodes; some paths follow the truth, siblings may repeat each other's token."""

    needs = ProposerNeeds(makes_trees=True)

    def __init__(self, nodes: int, vocab_size: int) -> None:
        self.nodes, self.vocab_size = nodes, vocab_size
        self.random = np.random.default_rng(7)

    def bind(self, tools: ProposerTools) -> None:
        self.seats = tools.seats

    def num_nodes(self, depth: int) -> int:
        return self.nodes

    def propose(self, plan: StepPlan) -> DraftTrees:
        shape = (len(plan), self.nodes)
        tokens, parents = np.zeros(shape, dtype=np.int32), np.full(shape, -1, dtype=np.int32)
        counts = np.zeros(len(plan), dtype=np.int32)
        for number, request in enumerate(plan.requests):
            budget = int(plan.draft_depth[number])
            if not budget:
                continue
            truth = TRUTH.get((tuple(request.prompt_token_ids), request.sample_index), [])
            counts[number] = count = int(self.random.integers(1, self.nodes + 1))
            self._grow(tokens[number], parents[number], count, budget, truth[len(request.output_token_ids) :])
        return DraftTrees(tokens, parents, counts)

    def _grow(self, tokens: Any, parents: Any, count: int, budget: int, truth: list[int]) -> None:
        depths: list[int] = []
        for node in range(count):
            shallow = [-1, *(other for other in range(node) if depths[other] < budget)]
            # Recent nodes are likelier parents, so that some paths run deep.
            parent = shallow[-1 - int(self.random.geometric(0.5)) % len(shallow)]
            depth = 1 if parent < 0 else depths[parent] + 1
            right = depth <= len(truth) and self.random.random() < 0.7
            tokens[node] = truth[depth - 1] if right else self.random.integers(0, self.vocab_size)
            parents[node] = parent
            depths.append(depth)

    def observe(self, plan: StepPlan, verdict: Verdict) -> None:
        pass

    def forget(self, seat: int) -> None:
        pass


class LateTruthProposer(RandomTreeProposer):
    """63 wrong children of the root, then a chain that is right: its first node is bit 63, a word's sign."""

    def _grow(self, tokens: Any, parents: Any, count: int, budget: int, truth: list[int]) -> None:
        right = truth[: min(budget, self.nodes - 63)]
        wrong = truth[0] + 1 + np.arange(63) % (self.vocab_size - 2) if truth else np.zeros(63)
        tokens[:63] = wrong % self.vocab_size
        tokens[63 : 63 + len(right)] = right
        parents[63 : 63 + len(right)] = [-1, *range(63, 62 + len(right))][: len(right)]

    def propose(self, plan: StepPlan) -> DraftTrees:
        drafts = super().propose(plan)
        truths = [TRUTH[tuple(r.prompt_token_ids), r.sample_index][len(r.output_token_ids) :] for r in plan.requests]
        deep = [
            min(int(budget), self.nodes - 63, len(truth))
            for budget, truth in zip(plan.draft_depth, truths, strict=True)
        ]
        return DraftTrees(drafts.tokens, drafts.parents, np.array([63 + n if n else 0 for n in deep], dtype=np.int32))


class ModelTreeProposer:
    """Trees of the likeliest paths of a draft model, ``width`` nodes to a level."""

    def __init__(self, model: CausalLM, width: int) -> None:
        self.needs, self.width = ProposerNeeds(model, makes_trees=True), width

    def bind(self, tools: ProposerTools) -> None:
        self.runner: Any = tools.runner

    def num_nodes(self, depth: int) -> int:
        return self.width * depth

    def draft(self, graph: GraphBuilder, depth: int) -> None:
        rows = graph.place(self.runner, RowSpec())
        logits = graph.forward(rows).logits
        for level in range(depth):
            if level:
                nodes = RowSpec(known=False, first_node=(level - 1) * self.width, num_nodes=self.width)
                rows = graph.place(self.runner, nodes)
                logits = graph.forward(rows).logits
            graph.extend_tree(logits, rows, self.width)

    def observe(self, plan: StepPlan, verdict: Verdict) -> None:
        pass

    def forget(self, seat: int) -> None:
        pass


class AddedFeatures(Entry):
    """Token rows plus a little of what the target left."""

    def __init__(self, model: CausalLM, num_taps: int) -> None:
        super().__init__()
        width = model.config.hidden_size
        on = Placement(model.dtype, model.device)
        self.input_size = width
        self.fuse, self.join = (Linear.empty(size, (width,), bias=False, on=on) for size in (num_taps * width, width))
        random = torch.Generator().manual_seed(5)
        for linear in (self.fuse, self.join):
            linear.weight.copy_(0.02 * torch.randn(linear.weight.shape, generator=random, dtype=torch.float64))

    def forward(self, x: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        return x + self.join(inputs)


class FeatureTreeProposer(ModelTreeProposer):
    """As its parent, but the model also reads the target's features, and drafts from its own where there are none."""

    TAPS = (0, 2)

    def __init__(self, model: CausalLM, width: int) -> None:
        super().__init__(model, width)
        if model.entry is None:
            model.entry = AddedFeatures(model, len(self.TAPS))
        assert isinstance(model.entry, AddedFeatures)
        kept = KeptFeatures(model.entry.input_size, self.TAPS, model.entry.fuse)
        self.needs = ProposerNeeds(model, makes_trees=True, features=kept)
        self.last = model.config.num_layers

    def draft(self, graph: GraphBuilder, depth: int) -> None:
        rows = graph.place(self.runner, RowSpec(first_slot=1))
        found = graph.forward(rows, taps=(self.last,), inputs=graph.features(rows))
        for level in range(depth):
            if level:
                spec = RowSpec(known=False, first_node=(level - 1) * self.width, num_nodes=self.width, first_slot=1)
                before, rows = rows, graph.place(self.runner, spec)
                inputs = graph.inherit(found.features, before, rows)
                found = graph.forward(rows, taps=(self.last,), inputs=inputs)
            graph.extend_tree(found.logits, rows, self.width)


class DrawnTreeProposer(ModelTreeProposer):
    """Trees of tokens that a draft model draws, ``width`` behind each node without replacement."""

    def num_nodes(self, depth: int) -> int:
        return sum(self.width**level for level in range(1, depth + 1))

    def draft(self, graph: Any, depth: int) -> None:
        rows = graph.place(self.runner, RowSpec())
        first, count = 0, self.width
        for level in range(depth):
            if level:
                rows = graph.place(self.runner, RowSpec(known=False, first_node=first, num_nodes=count))
                first, count = first + count, count * self.width
            graph.extend_drawn(graph.forward(rows).logits, rows, self.width)


class FaultyProposer(RandomTreeProposer):
    """Answers with whatever ``fault`` makes of a good tree."""

    fault: Callable[[DraftTrees], DraftTrees]

    def propose(self, plan: StepPlan) -> DraftTrees:
        return type(self).fault(super().propose(plan))


@proposers.add("random_tree")
def random_tree(config: SpeculativeConfig, target: CausalLM, _load: Any) -> RandomTreeProposer:
    return RandomTreeProposer(int(config.model or 9), target.config.vocab_size)


@proposers.add("model_tree")
def model_tree(config: SpeculativeConfig, target: CausalLM, load: Any) -> ModelTreeProposer:
    return ModelTreeProposer(load(config.model), 3)


@proposers.add("feature_tree")
def feature_tree(config: SpeculativeConfig, _target: CausalLM, load: Any) -> FeatureTreeProposer:
    return FeatureTreeProposer(load(config.model or ""), 3)


@proposers.add("drawn_tree")
def drawn_tree(config: SpeculativeConfig, _target: CausalLM, load: Any) -> DrawnTreeProposer:
    return DrawnTreeProposer(load(config.model or ""), 2)


@proposers.add("late_truth")
def late_truth(_config: SpeculativeConfig, target: CausalLM, _load: Any) -> LateTruthProposer:
    return LateTruthProposer(70, target.config.vocab_size)


@proposers.add("faulty")
def faulty(_config: SpeculativeConfig, target: CausalLM, _load: Any) -> FaultyProposer:
    return FaultyProposer(6, target.config.vocab_size)
