"""Knows the GPT-2 family (Radford et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.core.layer import LayerSpec
from paceline.layers.attention import Attention
from paceline.layers.block import PreNormBlock
from paceline.layers.embedding import Embedding
from paceline.layers.mlp import MLP
from paceline.layers.norm import LayerNorm
from paceline.layers.placement import Placement
from paceline.models.base import CausalLM, Family, Part, families
from paceline.models.config import MAX_LAYERS, Fields, ModelConfig, common

LAYER, OURS = "transformer.h.{layer}", "blocks.{layer}"

NAMES = {
    "transformer.wte": Part("embedding.tokens"),
    "transformer.wpe": Part("embedding.positions"),
    f"{LAYER}.ln_1": Part(f"{OURS}.attention_norm"),
    f"{LAYER}.attn.c_attn": Part(f"{OURS}.attention.qkv", transposed=True),
    f"{LAYER}.attn.c_proj": Part(f"{OURS}.attention.out", transposed=True),
    f"{LAYER}.ln_2": Part(f"{OURS}.mlp_norm"),
    f"{LAYER}.mlp.c_fc": Part(f"{OURS}.mlp.up", transposed=True),
    f"{LAYER}.mlp.c_proj": Part(f"{OURS}.mlp.down", transposed=True),
    "transformer.ln_f": Part("norm"),
    "lm_head": Part("head"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GPT2Config(ModelConfig):
    num_heads: int
    intermediate_size: int
    norm_epsilon: float
    activation: str
    scale_scores: bool
    """Divide attention scores by sqrt(head_dim)."""
    scale_by_depth: bool
    """Divide attention scores by the layer's number, counted from 1."""


def read_config(fields: Fields, generation: Fields | None) -> GPT2Config:
    hidden_size, num_heads = fields.integer("n_embd"), fields.integer("n_head")
    if hidden_size % num_heads:
        raise fields.error("n_head", f"a divisor of n_embd ({hidden_size})")
    if fields.flag("add_cross_attention", False):
        raise fields.error("add_cross_attention", "false: encoder-decoder models are not supported")
    return GPT2Config(
        **common(fields, generation, tied=True),
        hidden_size=hidden_size,
        num_layers=fields.integer("n_layer", high=MAX_LAYERS),
        max_position_embeddings=fields.integer("n_positions", 1024),
        num_heads=num_heads,
        intermediate_size=fields.integer("n_inner", 4 * hidden_size),
        norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
        activation=fields.activation("activation_function", "gelu_new"),
        scale_scores=fields.flag("scale_attn_weights", True),
        scale_by_depth=fields.flag("scale_attn_by_inverse_layer_idx", False),
    )


def build(config: GPT2Config, on: Placement) -> CausalLM:
    specs = [_spec(config, layer) for layer in range(config.num_layers)]
    num_positions = config.max_position_embeddings
    return CausalLM(
        config,
        embedding=Embedding(config.vocab_size, config.hidden_size, num_positions=num_positions, on=on),
        blocks=[_block(config, spec, on) for spec in specs],
        layer_specs=specs,
        norm=LayerNorm(config.hidden_size, epsilon=config.norm_epsilon, on=on),
        on=on,
    )


def _spec(config: GPT2Config, layer: int) -> LayerSpec:
    head_dim = config.hidden_size // config.num_heads
    scale = head_dim**-0.5 if config.scale_scores else 1.0
    depth = layer + 1 if config.scale_by_depth else 1
    heads = config.num_heads
    return LayerSpec(num_heads=heads, num_kv_heads=heads, head_dim=head_dim, scale=scale / depth)


def _block(config: GPT2Config, spec: LayerSpec, on: Placement) -> PreNormBlock:
    hidden, epsilon = config.hidden_size, config.norm_epsilon
    return PreNormBlock(
        attention_norm=LayerNorm(hidden, epsilon=epsilon, on=on),
        attention=Attention(hidden, spec, bias=True, output_bias=True, on=on),
        mlp_norm=LayerNorm(hidden, epsilon=epsilon, on=on),
        mlp=MLP(hidden, config.intermediate_size, activation=config.activation, bias=True, on=on),
    )


families.add("gpt2")(
    Family(
        read_config=read_config,
        build=build,
        names=NAMES,
        skipped=(r".*\.attn\.(bias|masked_bias)",),
        prefix="transformer.",
    )
)
