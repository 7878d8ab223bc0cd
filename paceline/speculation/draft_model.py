"""A small language model drafts a chain or a tree of tokens (2211.17192); its K/V live in layer groups of their own."""

from __future__ import annotations

from paceline.core.config import SpeculativeConfig
from paceline.core.errors import ConfigError
from paceline.models import CausalLM
from paceline.runner import GraphBuilder, RowSpec
from paceline.speculation.base import DraftLoader, ProposerNeeds, proposers
from paceline.speculation.levels import DraftShape, LevelProposer
from paceline.speculation.padding import fit_padding


class DraftModelProposer(LevelProposer):
    """Drafts with the target's own controls.

    Under ``match`` a chain shares the target's noise, so that both choose alike as often as sharing can make them
    (2408.07978); else it is drawn with noise of its own, and hands over what it was drawn from. A tree is certain.
    """

    def __init__(self, model: CausalLM, shape: DraftShape | None = None) -> None:
        self.shape = shape or DraftShape()
        self.needs = ProposerNeeds(model, makes_trees=self.shape.makes_trees)

    def draft(self, graph: GraphBuilder, depth: int) -> None:
        """Of a draft of k levels, k - 1 are forwarded: the last needs no successor."""
        rows = graph.place(self.runner, RowSpec())
        found = graph.forward(rows)
        for level in range(depth):
            if level:
                rows = graph.place(self.runner, self.shape.level(level - 1))
                found = graph.forward(rows)
            self.shape.extend(graph, found.logits, rows)
        self.shape.prune(graph, depth)


@proposers.add("draft_model")
def build(config: SpeculativeConfig, target: CausalLM, load: DraftLoader) -> DraftModelProposer:
    if config.model is None:
        raise ConfigError('the draft_model method needs a draft\nSet speculative_config["model"] to its directory.')
    draft = load(config.model)
    fit_padding(draft, target, config.model, load)
    return DraftModelProposer(draft, DraftShape.of(config))
