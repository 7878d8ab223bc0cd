"""Copies while the text repeats what was there before, and else has a model draft."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np

from paceline.core.batch import Verdict
from paceline.core.config import SpeculativeConfig
from paceline.core.errors import ConfigError
from paceline.core.step import DraftTrees, StepPlan
from paceline.models import CausalLM
from paceline.runner import GraphBuilder
from paceline.speculation.base import (
    DraftLoader,
    DraftsInGraph,
    DraftsOnHost,
    Proposer,
    ProposerTools,
    proposers,
)
from paceline.speculation.verify import verifiers

INSTEAD = {
    "composite_copies": "Set it to suffix or ngram.",
    "composite_drafts": "Set it to draft_model, eagle3, mtp, medusa or early_exit.",
}


class CopyingProposer(Proposer, DraftsOnHost, Protocol):
    """Looks at tokens."""


class StagedProposer(Proposer, DraftsInGraph, Protocol):
    """Drafts in stages."""


class CompositeProposer:
    """A request whose copy is as long as the model's draft would be gets the copy: it is free, and likelier to stand.

    Its tokens are fed to the model later, once the model is to draft for it again.
    """

    def __init__(self, copying: CopyingProposer, drafting: StagedProposer) -> None:
        self.copying, self.drafting, self.needs = copying, drafting, drafting.needs

    def bind(self, tools: ProposerTools) -> None:
        self.copying.bind(tools)
        self.drafting.bind(tools)

    def num_nodes(self, depth: int) -> int:
        return max(self.copying.num_nodes(depth), self.drafting.num_nodes(depth))

    def copies(self, plan: StepPlan) -> DraftTrees:
        found = self.copying.propose(plan)
        worth = (found.counts > 0) & (found.deepest >= plan.draft_depth)
        return replace(found, counts=np.where(worth, found.counts, 0).astype(np.int32))

    def draft(self, graph: GraphBuilder, depth: int) -> None:
        self.drafting.draft(graph, depth)

    def observe(self, plan: StepPlan, verdict: Verdict) -> None:
        self.copying.observe(plan, verdict)
        self.drafting.observe(plan, verdict)

    def forget(self, seat: int) -> None:
        self.copying.forget(seat)
        self.drafting.forget(seat)


@proposers.add("composite")
def build(config: SpeculativeConfig, target: CausalLM, load: DraftLoader) -> CompositeProposer:
    if verifiers[config.verifier].needs_probs:
        raise ConfigError(
            f"the {config.verifier} verifier weighs what drafts were drawn from, and copies were not drawn\n"
            'Set speculative_config["verifier"] to match.'
        )
    for option in ("composite_copies", "composite_drafts"):
        if proposers[getattr(config, option)] is build:  # it would build itself without end
            raise ConfigError(
                f"{option} is {getattr(config, option)}, which joins methods and is none itself\n{INSTEAD[option]}"
            )
    copying = proposers[config.composite_copies](config, target, load)
    drafting = proposers[config.composite_drafts](config, target, load)
    if not isinstance(copying, DraftsOnHost) or copying.needs.weights is not None:
        raise ConfigError(
            f"composite_copies is {config.composite_copies}, which does not copy\n{INSTEAD['composite_copies']}"
        )
    if not isinstance(drafting, DraftsInGraph):
        raise ConfigError(
            f"composite_drafts is {config.composite_drafts}, which composite cannot join\n{INSTEAD['composite_drafts']}"
        )
    return CompositeProposer(copying, drafting)
