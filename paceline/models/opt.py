"""Knows the OPT family (Zhang et al. 2022, arXiv 2205.01068)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from paceline.layers.block import PostNormBlock, PreNormBlock
from paceline.layers.embedding import InputEmbedding
from paceline.layers.linear import Linear
from paceline.layers.placement import Placement
from paceline.models.base import CausalLM
from paceline.models.classic import ClassicConfig, classic_block, heads_alike, layer_norm, read_heads
from paceline.models.config import MAX_LAYERS, Fields, common
from paceline.models.family import LAYER, Family, Part, families

FIRST_POSITION = 2
"""The table of positions starts with two rows that nothing uses."""
DECODER = "model.decoder"
THEIRS = DECODER + ".layers.{layer}"
NAMES = {
    f"{DECODER}.embed_tokens": Part("embedding.tokens"),
    f"{DECODER}.embed_positions": Part("embedding.positions"),
    f"{DECODER}.project_in": Part("embedding.widen"),
    f"{THEIRS}.self_attn_layer_norm": Part(f"{LAYER}.attention_norm"),
    f"{THEIRS}.self_attn.q_proj": Part(f"{LAYER}.attention.qkv", 0),
    f"{THEIRS}.self_attn.k_proj": Part(f"{LAYER}.attention.qkv", 1),
    f"{THEIRS}.self_attn.v_proj": Part(f"{LAYER}.attention.qkv", 2),
    f"{THEIRS}.self_attn.out_proj": Part(f"{LAYER}.attention.out"),
    f"{THEIRS}.final_layer_norm": Part(f"{LAYER}.mlp_norm"),
    f"{THEIRS}.fc1": Part(f"{LAYER}.mlp.up"),
    f"{THEIRS}.fc2": Part(f"{LAYER}.mlp.down"),
    f"{DECODER}.final_layer_norm": Part("norm"),
    f"{DECODER}.project_out": Part("narrow"),
    "lm_head": Part("head"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OPTConfig(ClassicConfig):
    token_size: int
    """Width of the embedding and output matrices."""
    norm_first: bool
    """Norms stand before attention and MLP; else behind them (OPT-350m)."""
    final_norm: bool


def read_config(fields: Fields, generation: Fields | None) -> OPTConfig:
    num_heads, hidden_size = read_heads(fields, "num_attention_heads", "hidden_size")
    if not fields.flag("layer_norm_elementwise_affine", True):
        raise fields.error("layer_norm_elementwise_affine", "true: norms without weights are not supported")
    norm_first = fields.flag("do_layer_norm_before", True)
    bias = fields.flag("enable_bias", True)
    return OPTConfig(
        **common(fields, generation, tied=True),
        hidden_size=hidden_size,
        num_layers=fields.integer("num_hidden_layers", high=MAX_LAYERS),
        max_position_embeddings=fields.integer("max_position_embeddings", 2048),
        num_heads=num_heads,
        intermediate_size=fields.integer("ffn_dim"),
        norm_epsilon=1e-5,
        activation=fields.activation("activation_function", "relu"),
        attention_bias=bias,
        mlp_bias=bias,
        token_size=fields.integer("word_embed_proj_dim", hidden_size),
        norm_first=norm_first,
        final_norm=norm_first and not fields.flag("_remove_final_layer_norm", False),
    )


def build(config: OPTConfig, on: Placement) -> CausalLM:
    spec, kind = heads_alike(config), PreNormBlock if config.norm_first else PostNormBlock
    hidden, narrow = config.hidden_size, config.token_size
    return CausalLM(
        config,
        embedding=InputEmbedding(
            config.vocab_size,
            hidden,
            token_size=narrow,
            num_positions=config.max_position_embeddings,
            first_position=FIRST_POSITION,
            on=on,
        ),
        blocks=[classic_block(kind, config, spec, on) for _ in range(config.num_layers)],
        layer_specs=[spec] * config.num_layers,
        norm=layer_norm(config, on) if config.final_norm else nn.Identity(),
        narrow=None if narrow == hidden else Linear.empty(hidden, (narrow,), bias=False, on=on),
        on=on,
    )


families.add("opt")(Family(read_config=read_config, build=build, names=NAMES, prefixes=(("", "model."),)))
