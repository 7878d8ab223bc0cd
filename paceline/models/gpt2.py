"""Knows the GPT-2 family (Radford et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.core.layer import LayerSpec
from paceline.layers.block import PreNormBlock
from paceline.layers.embedding import InputEmbedding
from paceline.layers.placement import Placement
from paceline.models.base import CausalLM
from paceline.models.classic import ClassicConfig, classic_block, heads_alike, layer_norm, read_heads
from paceline.models.config import MAX_LAYERS, Fields, common
from paceline.models.family import LAYER, Family, Part, families

THEIRS = "transformer.h.{layer}"
NAMES = {
    "transformer.wte": Part("embedding.tokens"),
    "transformer.wpe": Part("embedding.positions"),
    f"{THEIRS}.ln_1": Part(f"{LAYER}.attention_norm"),
    f"{THEIRS}.attn.c_attn": Part(f"{LAYER}.attention.qkv", transposed=True),
    f"{THEIRS}.attn.c_proj": Part(f"{LAYER}.attention.out", transposed=True),
    f"{THEIRS}.ln_2": Part(f"{LAYER}.mlp_norm"),
    f"{THEIRS}.mlp.c_fc": Part(f"{LAYER}.mlp.up", transposed=True),
    f"{THEIRS}.mlp.c_proj": Part(f"{LAYER}.mlp.down", transposed=True),
    "transformer.ln_f": Part("norm"),
    "lm_head": Part("head"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GPT2Config(ClassicConfig):
    scale_scores: bool
    """Divide attention scores by sqrt(head_dim)."""
    scale_by_depth: bool
    """Divide attention scores by the layer's number, counted from 1."""


def read_config(fields: Fields, generation: Fields | None) -> GPT2Config:
    num_heads, hidden_size = read_heads(fields, "n_head", "n_embd")
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
        attention_bias=True,
        mlp_bias=True,
        scale_scores=fields.flag("scale_attn_weights", True),
        scale_by_depth=fields.flag("scale_attn_by_inverse_layer_idx", False),
    )


def build(config: GPT2Config, on: Placement) -> CausalLM:
    specs = [_spec(config, layer) for layer in range(config.num_layers)]
    num_positions = config.max_position_embeddings
    return CausalLM(
        config,
        embedding=InputEmbedding(config.vocab_size, config.hidden_size, num_positions=num_positions, on=on),
        blocks=[classic_block(PreNormBlock, config, spec, on) for spec in specs],
        layer_specs=specs,
        norm=layer_norm(config, on),
        on=on,
    )


def _spec(config: GPT2Config, layer: int) -> LayerSpec:
    scale = config.head_dim**-0.5 if config.scale_scores else 1.0
    return heads_alike(config, scale=scale / (layer + 1) if config.scale_by_depth else scale)


families.add("gpt2")(
    Family(
        read_config=read_config,
        build=build,
        names=NAMES,
        skipped=(r".*\.attn\.(bias|masked_bias)",),
        prefixes=(("", "transformer."),),
    )
)
