"""The recipe of a multi-token prediction module, recursed (FastMTP, arXiv 2509.18362), under MiMo's names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from paceline.training.head import Head, HeadShape, Places, TargetStates
from paceline.training.head_layers import GatedMlp, HeadAttention, Recursion, rms_norm
from paceline.training.head_options import MtpOptions
from paceline.training.head_recipe import train_head
from paceline.training.progress import Progress
from paceline.training.publishing import Given, mimo_config


class MtpModule(nn.Module):
    """Joins the target's last state with the next token's embedding; a layer of the target's form, and a norm."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        size = shape.hidden_size
        self.token_layernorm, self.hidden_layernorm = rms_norm(size, shape), rms_norm(size, shape)
        self.input_proj = nn.Linear(2 * size, size, bias=False)
        self.input_layernorm, self.post_attention_layernorm = rms_norm(size, shape), rms_norm(size, shape)
        self.self_attn = HeadAttention(shape, width=size, bias=shape.biased)
        self.mlp = GatedMlp(shape)
        self.final_layernorm = rms_norm(size, shape)

    def joined(self, embeddings: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        pair = torch.cat([self.hidden_layernorm(state), self.token_layernorm(embeddings)], dim=-1)
        joined: torch.Tensor = self.input_proj(pair)
        return joined

    def behind(self, joined: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        between = joined + attended
        after: torch.Tensor = self.final_layernorm(between + self.mlp(self.post_attention_layernorm(between)))
        return after


class MtpHead(Head):
    decay = 0.6

    def __init__(self, given: Given) -> None:
        super().__init__()
        self.given = given
        self.shape = replace(HeadShape.of(given.config, 0), biased=given.biased)
        module = MtpModule(self.shape)
        module.final_layernorm.weight.data.copy_(given.final_norm)
        self.mtp_layers = nn.ModuleList([module])
        self.lm_head = given.unembedding(trained=False)

    def forward(self, states: TargetStates, places: Places, steps: int) -> list[torch.Tensor]:
        """The pair (state t, token t+1) has the place t; behind it the state is the module's own output, normed."""
        module: Any = self.mtp_layers[0]
        first = module.joined(states.embeddings[:, 1:], states.hidden[:, :-1])
        recursion = Recursion(module.self_attn, module.input_layernorm(first), places)
        state, logits = places.rows(states.hidden), []
        for step in range(steps):
            joined = module.joined(places.rows(states.embeddings, step + 1), state)
            state = module.behind(joined, recursion.step(module.input_layernorm(joined)))
            logits.append(self.lm_head(state))
        return logits

    def tensors(self) -> Mapping[str, torch.Tensor]:
        own = {name: tensor for name, tensor in self.state_dict().items() if name.startswith("mtp_layers.")}
        return {f"model.{name}": tensor for name, tensor in own.items()}

    def config(self) -> Mapping[str, Any]:
        return mimo_config(self.given, self.shape)


def train_mtp(options: MtpOptions, progress: Progress) -> Mapping[str, Any]:
    """Trains, writes the module to ``options.out`` under MiMo's names, and measures it.

    Raises:
        PacelineError: naming the option, or the file and line, that cannot be used.
    """
    return train_head("mtp", options, MtpHead, progress)
