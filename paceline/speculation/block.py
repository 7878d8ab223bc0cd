"""A module drafts all tokens of a chain in one pass: P-EAGLE (2602.01469) and DFlash (2602.06036)."""

from __future__ import annotations

from typing import Any

import torch

from paceline.core.config import SpeculativeConfig
from paceline.core.errors import ConfigError
from paceline.models import BlockDraftModule, CausalLM
from paceline.runner import GraphBuilder, KeptFeatures, MaskNodes, RowSpec
from paceline.speculation.base import DraftLoader, ProposerNeeds, ProposerTools, proposers, required_model
from paceline.speculation.levels import DraftShape, LevelProposer

ALONE = 2**30
"""A first slot beyond all slots: rows see only themselves."""


class BlockProposer(LevelProposer):
    """Lays out what ``paceline.models.drafters.block`` says of the module.

    No token of a draft hangs on another one: each is drawn from what its own row says, with the noise that the target
    will have there.
    """

    def __init__(self, module: BlockDraftModule) -> None:
        self.module, self.block, self.shape = module, module.block, DraftShape()
        kept = KeptFeatures(module.feature_size, module.taps, module.fuse)
        self.needs = ProposerNeeds(module, writer=module.context, features=kept)
        first_output = 1 if module.context is None else 0 if self.block.samples_first else -1
        self.masks = MaskNodes(
            self.block.mask_token_id,
            first_output,
            repeats_last=module.context is not None,
            sees_all=self.block.bidirectional,
        )

    def bind(self, tools: ProposerTools) -> None:
        super().bind(tools)
        self.writer = tools.writer
        self.inputs: torch.Tensor | None = None
        if self.module.mask is not None:
            assert tools.runner is not None
            with torch.inference_mode():
                mask = self.module.mask.weight.flatten(0, 1)
                self.inputs = tools.runner.executor.apply(self.module.fuse, mask).clone()

    def num_nodes(self, depth: int) -> int:
        """A node that decides nothing new takes a slot too."""
        return depth + self.masks.unsampled

    def draft(self, graph: GraphBuilder, depth: int) -> None:
        rows, logits = self._known_and_masks(graph, depth) if self.writer is None else self._block(graph, depth)
        if not depth:
            return
        tokens = graph.sample(logits, rows)
        for _ in range(depth):
            graph.extend(tokens)

    def _known_and_masks(self, graph: GraphBuilder, depth: int) -> tuple[Any, Any]:
        rows = graph.place(self.runner, RowSpec(num_nodes=max(depth - 1, 0), first_slot=1, masks=self.masks))
        return rows, graph.forward(rows, inputs=graph.features(rows, self.inputs)).logits

    def _block(self, graph: GraphBuilder, depth: int) -> tuple[Any, Any]:
        rows = graph.place(self.writer, RowSpec(first_slot=ALONE, position_shift=-1))
        found = graph.forward(rows, inputs=graph.features(rows))
        if depth:
            masks = RowSpec(
                known=False, num_nodes=self.num_nodes(depth), position_shift=-1, first_slot=1, masks=self.masks
            )
            rows = graph.place(self.runner, masks)
            found = graph.forward(rows)
        return rows, found.logits


@proposers.add("p_eagle")
@proposers.add("dflash")
def build(config: SpeculativeConfig, target: CausalLM, load: DraftLoader) -> BlockProposer:
    """Under either name: the module says how it is laid out."""
    name = required_model(config, "a draft module")
    if config.draft_top_k > 1:
        raise ConfigError(
            f"draft_top_k is {config.draft_top_k}, and {config.method} drafts chains\nSet draft_top_k to 1."
        )
    module = load.module(name, target)
    if not isinstance(module, BlockDraftModule):
        raise ConfigError(
            f"{name} drafts one token a pass, {config.method} takes modules that draft all in one\n"
            'Set speculative_config["method"] to eagle or mtp.'
        )
    most = module.block.max_tokens
    if most is not None and config.num_speculative_tokens > most:
        raise ConfigError(
            f"num_speculative_tokens is {config.num_speculative_tokens}, the module was trained to draft {most}\n"
            f"Set num_speculative_tokens to at most {most}."
        )
    return BlockProposer(module)
