"""Medusa heads draft a tree from one hidden row, without a pass of their own (2401.10774)."""

from __future__ import annotations

from paceline.core.config import SpeculativeConfig
from paceline.core.errors import ConfigError
from paceline.models import CausalLM, HeadLogits, MedusaHeads
from paceline.runner import GraphBuilder, KeptFeatures, RowSpec
from paceline.speculation.base import DraftLoader, ProposerNeeds, proposers, required_model
from paceline.speculation.levels import DraftShape, LevelProposer


class MedusaProposer(LevelProposer):
    """Head i says the level i of the tree, whatever the nodes before are; their likeliest paths make the tree.

    The heads read the hidden row from which the last known token was sampled.
    """

    def __init__(self, heads: MedusaHeads, hidden_size: int, shape: DraftShape) -> None:
        self.shape = shape
        self.levels = [HeadLogits(heads, number) for number in range(heads.num_heads)]
        self.needs = ProposerNeeds(makes_trees=True, features=KeptFeatures(hidden_size), modules=heads)

    def draft(self, graph: GraphBuilder, depth: int) -> None:
        rows = graph.place(None, RowSpec(last=True))
        hidden = graph.features(rows)
        for head in self.levels[:depth]:
            graph.extend_tree(graph.apply(head, rows, hidden), rows, self.shape.top_k, shared=True)
        self.shape.prune(graph, depth)


@proposers.add("medusa")
def build(config: SpeculativeConfig, target: CausalLM, load: DraftLoader) -> MedusaProposer:
    heads = load.heads(required_model(config, "heads"), target)
    if config.num_speculative_tokens > heads.num_heads:
        raise ConfigError(
            f"num_speculative_tokens is {config.num_speculative_tokens}, there are {heads.num_heads} Medusa heads\n"
            f"Set num_speculative_tokens to at most {heads.num_heads}."
        )
    return MedusaProposer(heads, target.config.hidden_size, DraftShape.of(config))
