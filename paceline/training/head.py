"""Knows what a head is given and what it gives: a frozen target's states, and logits from places within rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from paceline.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class HeadShape:
    """What a head takes over of its target."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    rope_theta: float
    biased: bool = False
    """Whether queries, keys and values have biases."""

    @classmethod
    def of(cls, config: Any, intermediate_size: int) -> HeadShape:
        """Of a transformers config; an ``intermediate_size`` of 0 is the target's."""
        heads = config.num_attention_heads
        rope = getattr(config, "rope_parameters", None) or {}
        return cls(
            config.hidden_size,
            intermediate_size or config.intermediate_size,
            heads,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            getattr(config, "rms_norm_eps", 1e-6),
            rope.get("rope_theta", 10000.0),
        )


@dataclass(frozen=True, slots=True)
class TargetStates:
    """What the target knows of tokens i64[B, T]."""

    embeddings: torch.Tensor
    """[B, T, H]."""
    taps: torch.Tensor
    """[B, T, taps * H]: the residual stream where it enters the tapped layers."""
    hidden: torch.Tensor
    """[B, T, H]: behind the last norm."""


def default_taps(num_layers: int) -> list[int]:
    """The layers 2, L // 2 and L - 3, whose entering residual stream is tapped; the last three where these coincide.

    Raises:
        ConfigError: there are fewer than three layers.
    """
    if num_layers < 3:
        raise ConfigError(f"the target has {num_layers} layers, of which a head reads three\nTrain a deeper target.")
    usual = [2, num_layers // 2, num_layers - 3]
    return usual if usual[0] < usual[1] < usual[2] else [num_layers - 3, num_layers - 2, num_layers - 1]


def read_states(target: Any, tokens: torch.Tensor, taps: Sequence[int]) -> TargetStates:
    """Runs a frozen transformers model over tokens i64[B, T]."""
    with torch.no_grad():
        found = target.model(input_ids=tokens, use_cache=False, output_hidden_states=True)
        tapped = torch.cat([found.hidden_states[layer] for layer in taps], dim=-1)
        return TargetStates(target.get_input_embeddings()(tokens), tapped, found.last_hidden_state)


@dataclass(frozen=True, slots=True)
class Places:
    """Where in rows of tokens drafts begin: behind place t the token t+1 is known, and t+2, t+3, ... are drafted."""

    index: torch.Tensor
    """i64[B, N]."""
    counted: torch.Tensor
    """bool[B, N, K]: whether the k-th draft token would be within the same reply as the known one."""

    def rows(self, values: torch.Tensor, offset: int = 0) -> torch.Tensor:
        """[B, N, D] of values [B, T, D], ``offset`` behind each place."""
        index = (self.index + offset).unsqueeze(-1)
        return values.gather(1, index.expand(-1, -1, values.shape[-1]))


@torch.compiler.disable  # type: ignore[untyped-decorator]
def choose_places(tokens: torch.Tensor, reply: torch.Tensor, *, share: float, steps: int) -> Places:
    """Up to that share of the places of rows i64[B, T] where ``steps`` tokens can be drafted within a reply bool[B, T].

    Which ones, where there are more, depends on the tokens alone.
    """
    length = tokens.shape[1]
    usable = length - 1 - steps
    flags = torch.stack([reply[:, offset : offset + usable] for offset in range(1, steps + 2)], dim=-1)
    counted = flags.cummin(dim=-1).values[..., 1:]
    count = max(1, min(usable, round(length * share)))
    generator = torch.Generator().manual_seed(int(tokens.sum()))
    drawn = torch.rand(counted.shape[:2], generator=generator).to(tokens.device) + counted[..., 0]
    index = drawn.topk(count, dim=1).indices.sort(dim=1).values
    return Places(index, counted.gather(1, index.unsqueeze(-1).expand(-1, -1, steps)))


class Head(nn.Module, ABC):
    """A drafting head; its parameters have their published names."""

    decay: float
    """How much less each further draft token counts in the loss."""

    @abstractmethod
    def forward(self, states: TargetStates, places: Places, steps: int) -> list[torch.Tensor]:
        """Logits of each of ``steps`` draft tokens, [B, N, V] behind each place; the tokens between are the rows'."""

    @abstractmethod
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Everything to be saved, under its published names."""

    @abstractmethod
    def config(self) -> Mapping[str, Any]:
        """The published config.json."""


def head_loss(
    wanted: list[torch.Tensor], given: list[torch.Tensor], counted: torch.Tensor, decay: float
) -> torch.Tensor:
    """Mean KL(target || head) in nats over the counted of K draft tokens, of which each weighs less by ``decay``.

    Args:
        wanted: K times the target's logits [B, N, V]; ``given`` the head's.
        counted: bool[B, N, K].
    """
    total = torch.zeros((), device=counted.device)
    for step, (target, head) in enumerate(zip(wanted, given, strict=True)):
        each = functional.kl_div(
            functional.log_softmax(head.float(), dim=-1),
            functional.log_softmax(target.float(), dim=-1),
            log_target=True,
            reduction="none",
        ).sum(-1)
        weight = counted[..., step].float()
        total = total + decay**step * (each * weight).sum() / weight.sum().clamp(min=1)
    return total / sum(decay**step for step in range(len(given)))
