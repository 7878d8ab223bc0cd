"""The target's first layers draft for the whole of it, with its own K/V (LayerSkip, 2404.16710)."""

from __future__ import annotations

from typing import Any

from paceline.core.config import SpeculativeConfig
from paceline.core.errors import ConfigError
from paceline.models import CausalLM
from paceline.runner import GraphBuilder, RowSpec
from paceline.speculation.base import DraftLoader, ProposerNeeds, ProposerTools, proposers
from paceline.speculation.levels import DraftShape, FedLevel, LevelProposer


class EarlyExitProposer(LevelProposer):
    """Each level runs the first layers, the final norm and the output matrix.

    Rows write K/V where the target's own rows will lie: verifying writes the same numbers there again. Of the known
    tokens only the last is fed: the target has computed the others.
    """

    first = RowSpec(last=True)

    def __init__(self, num_layers: int, shape: DraftShape) -> None:
        self.num_layers, self.shape = num_layers, shape
        self.needs = ProposerNeeds(makes_trees=shape.makes_trees, shares_target_cache=True)

    def bind(self, tools: ProposerTools) -> None:
        self.runner = tools.target

    def forward(self, graph: GraphBuilder, rows: Any, before: FedLevel | None) -> Any:  # noqa: ARG002
        return graph.forward(rows, layers=self.num_layers)


@proposers.add("early_exit")
def build(config: SpeculativeConfig, target: CausalLM, _load: DraftLoader) -> EarlyExitProposer:
    most = target.config.num_layers - 1
    layers = config.early_exit_layers or max(1, most // 2)
    if layers > most:
        raise ConfigError(
            f"early_exit_layers is {layers}, the target has {target.config.num_layers} layers\n"
            f"Set early_exit_layers to at most {most}."
        )
    return EarlyExitProposer(layers, DraftShape.of(config))
