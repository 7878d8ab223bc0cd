"""Knows the layer that decoders before Llama share: LayerNorm, all heads alike, an MLP without gate."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.core.layer import LayerSpec
from paceline.layers.attention import Attention
from paceline.layers.block import Block
from paceline.layers.mlp import MLP
from paceline.layers.norm import LayerNorm
from paceline.layers.placement import Placement
from paceline.models.config import Fields, ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassicConfig(ModelConfig):
    num_heads: int
    intermediate_size: int
    norm_epsilon: float
    activation: str
    attention_bias: bool
    mlp_bias: bool

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


def read_heads(fields: Fields, heads: str, hidden: str) -> tuple[int, int]:
    """(number of heads, width of the residual stream), under their names in the file."""
    num_heads, hidden_size = fields.integer(heads), fields.integer(hidden)
    if hidden_size % num_heads:
        raise fields.error(heads, f"a divisor of {hidden} ({hidden_size})")
    return num_heads, hidden_size


def heads_alike(config: ClassicConfig, *, scale: float | None = None) -> LayerSpec:
    """Full attention with a K/V head per query head; scores are divided by sqrt(head_dim) unless ``scale`` is given."""
    return LayerSpec(
        num_heads=config.num_heads,
        num_kv_heads=config.num_heads,
        head_dim=config.head_dim,
        scale=config.head_dim**-0.5 if scale is None else scale,
    )


def layer_norm(config: ClassicConfig, on: Placement) -> LayerNorm:
    return LayerNorm(config.hidden_size, epsilon=config.norm_epsilon, on=on)


def classic_block(kind: type[Block], config: ClassicConfig, spec: LayerSpec, on: Placement) -> Block:
    hidden, bias = config.hidden_size, config.attention_bias
    return kind(
        attention_norm=layer_norm(config, on),
        attention=Attention(hidden, spec, bias=bias, output_bias=bias, on=on),
        mlp_norm=layer_norm(config, on),
        mlp=MLP(hidden, config.intermediate_size, activation=config.activation, bias=config.mlp_bias, on=on),
    )
