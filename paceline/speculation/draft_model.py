"""A small language model drafts a chain of tokens (2211.17192); its K/V live in layer groups of their own."""

from __future__ import annotations

from collections.abc import Callable

from paceline.core.batch import Verdict
from paceline.core.config import SpeculativeConfig
from paceline.core.errors import ConfigError
from paceline.core.step import StepPlan
from paceline.models import CausalLM
from paceline.runner import GraphBuilder, RowSpec
from paceline.speculation.base import ProposerNeeds, ProposerTools, proposers


class DraftModelProposer:
    """Drafts with the target's own controls.

    Under ``match`` it shares the target's noise, so that both choose alike as often as sharing can make them
    (2408.07978); else it draws with noise of its own, and hands over what it drew from.
    """

    def __init__(self, model: CausalLM) -> None:
        self.needs = ProposerNeeds(model)

    def bind(self, tools: ProposerTools) -> None:
        assert tools.runner is not None
        self.runner = tools.runner

    def num_nodes(self, depth: int) -> int:
        return depth

    def draft(self, graph: GraphBuilder, depth: int) -> None:
        """Of a draft of k tokens, k - 1 are forwarded: the last needs no successor."""
        rows = graph.place(self.runner, RowSpec())
        found = graph.forward(rows)
        for node in range(depth):
            if node:
                rows = graph.place(self.runner, RowSpec(known=False, first_node=node - 1, num_nodes=1))
                found = graph.forward(rows)
            graph.extend(graph.sample(found.logits, rows))

    def observe(self, plan: StepPlan, verdict: Verdict) -> None:
        pass

    def forget(self, seat: int) -> None:
        pass


@proposers.add("draft_model")
def build(config: SpeculativeConfig, target: CausalLM, load: Callable[[str], CausalLM]) -> DraftModelProposer:
    if config.model is None:
        raise ConfigError('the draft_model method needs a draft\nSet speculative_config["model"] to its directory.')
    draft = load(config.model)
    if draft.config.vocab_size != target.config.vocab_size:
        raise ConfigError(
            f"the draft has {draft.config.vocab_size} tokens, the target {target.config.vocab_size}\n"
            f'Set speculative_config["model"] to a draft with {target.config.vocab_size} tokens.'
        )
    return DraftModelProposer(draft)
