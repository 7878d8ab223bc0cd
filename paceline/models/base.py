"""Knows what every model family has in common: the decoder's loop, and how checkpoint names map to parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from paceline.core.layer import Attend, LayerSpec
from paceline.core.registry import Registry
from paceline.layers.embedding import Embedding
from paceline.layers.linear import Linear
from paceline.layers.placement import Placement
from paceline.layers.rotary import Rotary
from paceline.models.config import Fields, ModelConfig


class CausalLM(nn.Module):
    """A decoder over flat rows: T rows of any requests, no batch dimension, no cache and no masks of its own."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        embedding: Embedding,
        blocks: Sequence[nn.Module],
        layer_specs: Sequence[LayerSpec],
        norm: nn.Module,
        on: Placement,
        rotary: Rotary | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.layer_specs = tuple(layer_specs)
        self.embedding = embedding
        self.rotary = rotary
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        tied = embedding.tokens.weight
        self.head = Linear(tied if config.tied else on.parameter(config.vocab_size, config.hidden_size))

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.tokens.weight.device

    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, attend: Attend, taps: tuple[int, ...] = ()
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Runs i64[T] token ids at i64[T] positions through all layers.

        Returns:
            hidden [T, D] after the final norm; and, if ``taps`` names layers, features [T, len(taps) * D]: the
            residual stream that enters each of them, side by side. Tap ``num_layers`` is what leaves the last one.
        """
        x = self.embedding(token_ids, positions)
        rotation = None if self.rotary is None else self.rotary(positions)
        entering: dict[int, torch.Tensor] = {}
        for layer, block in enumerate(self.blocks):
            if layer in taps:
                entering[layer] = x
            x = block(layer, x, rotation, attend)
        entering[len(self.blocks)] = x
        features = torch.cat([entering[tap] for tap in taps], dim=-1) if taps else None
        return self.norm(x), features

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, D] -> [R, V], in the model's dtype."""
        scores: torch.Tensor = self.head(hidden)
        return scores


@dataclass(frozen=True, slots=True)
class Part:
    """Where one checkpoint module goes: a module of the model, and which projection of its packed linear."""

    module: str
    index: int | None = None
    transposed: bool = False
    """The checkpoint stores its matrices [in, out]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A model family: how its config is read, its model built and its checkpoint names understood."""

    read_config: Callable[[Fields, Fields | None], Any]
    """(config.json, generation_config.json) -> the family's ModelConfig."""
    build: Callable[[Any, Placement], CausalLM]
    names: Mapping[str, Part]
    """Checkpoint module -> Part; ``{layer}`` stands for each layer's number in both."""
    skipped: tuple[str, ...] = ()
    """Regular expressions of checkpoint tensors that hold nothing learned."""
    prefix: str = ""
    """What base-model exports leave out in front of their tensor names."""


families: Registry[Family] = Registry("model family")
