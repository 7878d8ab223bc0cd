"""The recipe of a DFlash head (arXiv 2602.06036): one pass over the target's taps fills a block of masked tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from paceline.training.head import Head, HeadShape, Places, TargetStates
from paceline.training.head_layers import GatedMlp, HeadAttention, attend, rms_norm
from paceline.training.head_options import DFlashOptions
from paceline.training.head_recipe import train_head
from paceline.training.progress import Progress
from paceline.training.publishing import Given, draft_vocabulary_tensors, speculators_config


class DFlashLayer(nn.Module):
    """A layer of Qwen3 whose keys and values come from the target's states, and from the block itself."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        size = shape.hidden_size
        self.input_layernorm, self.post_attention_layernorm = rms_norm(size, shape), rms_norm(size, shape)
        self.self_attn = HeadAttention(shape, width=size, head_norm=True)
        self.mlp = GatedMlp(shape)

    def forward(self, block: torch.Tensor, context: torch.Tensor, places: Places) -> torch.Tensor:
        """Block [B, N, S, H] behind each place, context [B, T, H]."""
        normed = self.input_layernorm(block)
        slots = torch.arange(block.shape[2], device=block.device)
        positions = places.index[..., None] + 1 + slots
        rows = torch.arange(context.shape[1], device=block.device).expand(context.shape[:2])
        attention = self.self_attn
        own = attention.key_value(normed, positions)
        found = attend(attention.query(normed, positions), attention.key_value(context, rows), own, places)
        block = block + attention.o_proj(found)
        after: torch.Tensor = block + self.mlp(self.post_attention_layernorm(block))
        return after


class DFlashHead(Head):
    decay = 0.8

    def __init__(self, given: Given, options: DFlashOptions) -> None:
        super().__init__()
        self.given = given
        self.shape = shape = HeadShape.of(given.config, options.intermediate_size)
        self.num_layers, self.steps = options.num_layers, options.num_speculative_tokens
        self.fc = nn.Linear(len(given.taps) * shape.hidden_size, shape.hidden_size, bias=False)
        self.hidden_norm = rms_norm(shape.hidden_size, shape)
        self.layers = nn.ModuleList([DFlashLayer(shape) for _ in range(options.num_layers)])
        self.norm = rms_norm(shape.hidden_size, shape)
        self.norm.weight.data.copy_(given.final_norm)
        self.lm_head = given.unembedding(trained=options.train_unembedding)
        self.mask = nn.Buffer(given.embedding[given.mask_token].clone(), persistent=False)

    def forward(self, states: TargetStates, places: Places, steps: int) -> list[torch.Tensor]:
        """The known token stands in the block's first slot; every slot behind it is masked and drafts its own token."""
        context = self.hidden_norm(self.fc(states.taps))
        known = places.rows(states.embeddings, 1)
        masks = [self.mask.to(known.dtype).expand_as(known)] * self.steps
        block = torch.stack([known, *masks], dim=2)
        for layer in self.layers:
            block = layer(block, context, places)
        logits = self.lm_head(self.norm(block[:, :, 1:]))
        return list(logits.unbind(dim=2))[:steps]

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Without an unembedding where it is the target's."""
        vocabulary = self.given.vocabulary
        own = dict(self.state_dict())
        if vocabulary.is_whole and not self.lm_head.weight.requires_grad:
            del own["lm_head.weight"]
        return own if vocabulary.is_whole else {**own, **draft_vocabulary_tensors(vocabulary)}

    def config(self) -> Mapping[str, Any]:
        return {
            **speculators_config(
                "dflash",
                "DFlashSpeculator",
                self.given,
                self.shape,
                layer="qwen3",
                tokens=self.steps,
                layers=self.num_layers,
            ),
            "block_size": self.steps + 1,
            "aux_hidden_state_layer_ids": list(self.given.taps),
            "mask_token_id": self.given.mask_token,
            "target_hidden_size": None,
            "sliding_window_non_causal": False,
            "sample_from_anchor": False,
        }


def train_dflash(options: DFlashOptions, progress: Progress) -> Mapping[str, Any]:
    """Trains, writes the head to ``options.out`` in the layout of speculators, and measures it.

    Raises:
        PacelineError: naming the option, or the file and line, that cannot be used.
    """
    return train_head("dflash", options, lambda given: DFlashHead(given, options), progress)
