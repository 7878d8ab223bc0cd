"""A module that reads the target's features drafts: EAGLE-1, 2 and 3 (2401.15077, 2406.16858, 2503.01840), and MTP."""

from __future__ import annotations

from typing import Any

from paceline.core.config import SpeculativeConfig
from paceline.core.errors import ConfigError
from paceline.models import BlockDraftModule, CausalLM, DraftModule
from paceline.runner import GraphBuilder, KeptFeatures, RowSpec
from paceline.speculation.base import DraftLoader, ProposerNeeds, proposers
from paceline.speculation.levels import DraftShape, LevelProposer


class FeatureModelProposer(LevelProposer):
    """The row of a known token reads what the target left at the slot before; a node's reads the module's own output.

    The pair of a token and the feature before it lies at the token's slot, so that K/V never depend on a token that
    comes later, and shared prefixes lose nothing. The token at slot 0 has no feature before it: nobody sees its row.
    """

    def __init__(self, module: DraftModule, shape: DraftShape) -> None:
        """
        Raises:
            ConfigError: a module that drafts all its tokens in one pass.
        """
        if isinstance(module, BlockDraftModule):
            name = "p_eagle" if module.context is None else "dflash"
            raise ConfigError(
                f"the draft module drafts all its tokens in one pass, as {name} has it\n"
                f'Set speculative_config["method"] to {name}.'
            )
        self.module, self.shape = module, shape
        kept = KeptFeatures(module.feature_size, module.taps, module.fuse)
        self.needs = ProposerNeeds(module, makes_trees=shape.makes_trees, features=kept)

    def draft(self, graph: GraphBuilder, depth: int) -> None:
        """Of a draft of k levels, k - 1 are forwarded."""
        shape, taps = self.shape, () if self.module.norm_output else (self.module.config.num_layers,)
        rows = graph.place(self.runner, RowSpec(first_slot=1))
        found = graph.forward(rows, taps=taps, inputs=graph.features(rows))
        for level in range(depth):
            if level:
                before, rows = rows, graph.place(self.runner, shape.level(level - 1, first_slot=1))
                found = graph.forward(rows, taps=taps, inputs=graph.inherit(self._output(found), before, rows))
            shape.extend(graph, found.logits, rows)
        shape.prune(graph, depth)

    def _output(self, found: Any) -> Any:
        """What the rows of the next level read."""
        return found.hidden if self.module.norm_output else found.features


@proposers.add("mtp")
def mtp(config: SpeculativeConfig, target: CausalLM, load: DraftLoader) -> FeatureModelProposer:
    """The module that predicts further tokens lies in the target's own directory, unless ``model`` names another."""
    return FeatureModelProposer(load.module(config.model, target), DraftShape.of(config))


@proposers.add("eagle")
@proposers.add("eagle3")
def eagle(config: SpeculativeConfig, target: CausalLM, load: DraftLoader) -> FeatureModelProposer:
    if config.model is None:
        raise ConfigError(
            f'the {config.method} method needs a draft module\nSet speculative_config["model"] to its directory.'
        )
    return FeatureModelProposer(load.module(config.model, target), DraftShape.of(config))
