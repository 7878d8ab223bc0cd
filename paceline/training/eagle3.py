"""The recipe of an EAGLE-3 head (arXiv 2503.01840): one layer on three taps of the target, run on its own output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from paceline.training.head import Head, HeadShape, Places, TargetStates
from paceline.training.head_layers import GatedMlp, HeadAttention, Recursion, rms_norm
from paceline.training.head_options import Eagle3Options
from paceline.training.head_recipe import train_head
from paceline.training.progress import Progress
from paceline.training.publishing import Given, draft_vocabulary_tensors, speculators_config


class Eagle3Layer(nn.Module):
    """Reads an embedding beside a state, and adds to the state."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        size = shape.hidden_size
        self.input_layernorm, self.hidden_norm = rms_norm(size, shape), rms_norm(size, shape)
        self.post_attention_layernorm = rms_norm(size, shape)
        self.self_attn = HeadAttention(shape, width=2 * size)
        self.mlp = GatedMlp(shape)

    def joined(self, embeddings: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.input_layernorm(embeddings), self.hidden_norm(state)], dim=-1)

    def behind(self, state: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        state = state + attended
        after: torch.Tensor = state + self.mlp(self.post_attention_layernorm(state))
        return after


class Eagle3Head(Head):
    decay = 0.8

    def __init__(self, given: Given, options: Eagle3Options) -> None:
        super().__init__()
        self.given = given
        self.shape = shape = HeadShape.of(given.config, options.intermediate_size)
        self.steps = options.num_speculative_tokens
        self.fc = nn.Linear(len(given.taps) * shape.hidden_size, shape.hidden_size, bias=False)
        self.layers = nn.ModuleList([Eagle3Layer(shape)])
        self.norm = rms_norm(shape.hidden_size, shape)
        self.norm.weight.data.copy_(given.final_norm)
        self.lm_head = given.unembedding(trained=options.train_unembedding)

    def forward(self, states: TargetStates, places: Places, steps: int) -> list[torch.Tensor]:
        """The pair (state t, token t+1) has the place t; behind it the state is the layer's own output, unnormed."""
        layer: Any = self.layers[0]
        fused = self.fc(states.taps)
        recursion = Recursion(layer.self_attn, layer.joined(states.embeddings[:, 1:], fused[:, :-1]), places)
        state, logits = places.rows(fused), []
        for step in range(steps):
            joined = layer.joined(places.rows(states.embeddings, step + 1), state)
            state = layer.behind(state, recursion.step(joined))
            logits.append(self.lm_head(self.norm(state)))
        return logits

    def tensors(self) -> Mapping[str, torch.Tensor]:
        return {**self.state_dict(), **draft_vocabulary_tensors(self.given.vocabulary)}

    def config(self) -> Mapping[str, Any]:
        return {
            **speculators_config(
                "eagle3", "Eagle3Speculator", self.given, self.shape, layer="llama", tokens=self.steps
            ),
            "norm_before_residual": False,
            "norm_before_fc": False,
            "fc_norm": False,
            "norm_output": False,
            "embed_requires_grad": False,
            "target_hidden_size": None,
            "eagle_aux_hidden_state_layer_ids": list(self.given.taps),
        }


def train_eagle3(options: Eagle3Options, progress: Progress) -> Mapping[str, Any]:
    """Trains, writes the head to ``options.out`` in the layout of speculators, and measures it.

    Raises:
        PacelineError: naming the option, or the file and line, that cannot be used.
    """
    return train_head("eagle3", options, lambda given: Eagle3Head(given, options), progress)
