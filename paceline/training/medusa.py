"""The recipe of Medusa heads (arXiv 2401.10774): a residual block per further token, on the target's last state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from paceline.training.head import Head, HeadShape, Places, TargetStates
from paceline.training.head_options import MedusaOptions
from paceline.training.head_recipe import train_head
from paceline.training.progress import Progress
from paceline.training.publishing import Given, medusa_config


class ResidualBlocks(nn.Module):
    """x + SiLU(Wx), as often as there are layers; W begins at zero, so that a head begins as the target."""

    def __init__(self, size: int, num_layers: int) -> None:
        super().__init__()
        layers = [nn.Linear(size, size, bias=False) for _ in range(num_layers)]
        for layer in layers:
            nn.init.zeros_(layer.weight)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + functional.silu(layer(x))
        return x


class MedusaBlocks(Head):
    decay = 0.8

    def __init__(self, given: Given, options: MedusaOptions) -> None:
        super().__init__()
        self.given, self.num_layers = given, options.num_layers
        self.shape = HeadShape.of(given.config, 0)
        size = self.shape.hidden_size
        self.blocks = nn.ModuleList(
            [ResidualBlocks(size, options.num_layers) for _ in range(options.num_speculative_tokens)]
        )
        self.lm_head = given.unembedding(trained=options.train_unembedding)

    def forward(self, states: TargetStates, places: Places, steps: int) -> list[torch.Tensor]:
        state = places.rows(states.hidden)
        return [self.lm_head(block(state)) for block in list(self.blocks)[:steps]]

    def tensors(self) -> Mapping[str, torch.Tensor]:
        own = {name: tensor for name, tensor in self.state_dict().items() if name.startswith("blocks.")}
        own["lm_heads.0.weight"] = self.lm_head.weight
        return own if self.given.vocabulary.is_whole else {**own, "token_map": self.given.vocabulary.ids}

    def config(self) -> Mapping[str, Any]:
        return medusa_config(self.given, num_heads=len(self.blocks), num_layers=self.num_layers)


def train_medusa(options: MedusaOptions, progress: Progress) -> Mapping[str, Any]:
    """Trains, writes the heads to ``options.out`` in vLLM's layout, and measures them.

    Raises:
        PacelineError: naming the option, or the file and line, that cannot be used.
    """
    return train_head("medusa", options, lambda given: MedusaBlocks(given, options), progress)
