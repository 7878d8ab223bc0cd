"""A module that reads the target's features drafts: EAGLE-1, 2 and 3 (2401.15077, 2406.16858, 2503.01840), and MTP."""

from __future__ import annotations

from typing import Any

from paceline.core.config import SpeculativeConfig
from paceline.core.errors import ConfigError
from paceline.models import BlockDraftModule, CausalLM, DraftModule
from paceline.runner import GraphBuilder, KeptFeatures, RowSpec
from paceline.speculation.base import DraftLoader, ProposerNeeds, proposers, required_model
from paceline.speculation.levels import DraftShape, FedLevel, LevelProposer


class FeatureModelProposer(LevelProposer):
    """The row of a known token reads what the target left at the slot before; a node's reads the module's own output.

    The pair of a token and the feature before it lies at the token's slot, so that K/V never depend on a token that
    comes later, and shared prefixes lose nothing. The token at slot 0 has no feature before it: nobody sees its row.
    """

    first = RowSpec(first_slot=1)

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

    def forward(self, graph: GraphBuilder, rows: Any, before: FedLevel | None) -> Any:
        module = self.module
        if before is None:
            inputs = graph.features(rows)
        else:
            output = before.found.hidden if module.norm_output else before.found.features
            inputs = graph.inherit(output, before.rows, rows)
        return graph.forward(rows, taps=() if module.norm_output else (module.config.num_layers,), inputs=inputs)


@proposers.add("mtp")
def mtp(config: SpeculativeConfig, target: CausalLM, load: DraftLoader) -> FeatureModelProposer:
    """The module that predicts further tokens lies in the target's own directory, unless ``model`` names another."""
    return FeatureModelProposer(load.module(config.model, target), DraftShape.of(config))


@proposers.add("eagle")
@proposers.add("eagle3")
def eagle(config: SpeculativeConfig, target: CausalLM, load: DraftLoader) -> FeatureModelProposer:
    return FeatureModelProposer(load.module(required_model(config, "a draft module"), target), DraftShape.of(config))
