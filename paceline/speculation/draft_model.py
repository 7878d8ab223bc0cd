"""A small language model drafts a chain or a tree of tokens (2211.17192); its K/V live in layer groups of their own."""

from __future__ import annotations

from paceline.core.config import SpeculativeConfig
from paceline.models import CausalLM
from paceline.speculation.base import DraftLoader, ProposerNeeds, proposers, required_model
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


@proposers.add("draft_model")
def build(config: SpeculativeConfig, target: CausalLM, load: DraftLoader) -> DraftModelProposer:
    name = required_model(config, "a draft")
    draft = load(name)
    fit_padding(draft, target, name, load)
    return DraftModelProposer(draft, DraftShape.of(config))
