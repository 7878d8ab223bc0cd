"""Knows the Llama family (Llama 2, 3, 3.1, 3.2; Touvron et al. 2023, arXiv 2307.09288)."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.core.layer import LayerSpec
from paceline.layers.attention import Attention
from paceline.layers.block import PreNormBlock
from paceline.layers.embedding import Embedding
from paceline.layers.mlp import GatedMLP
from paceline.layers.norm import RMSNorm
from paceline.layers.placement import Placement
from paceline.layers.rotary import Rotary, RotaryConfig
from paceline.models.base import CausalLM, Family, Part, families
from paceline.models.config import MAX_LAYERS, Fields, ModelConfig, common, rotary_config

LAYER, OURS = "model.layers.{layer}", "blocks.{layer}"

NAMES = {
    "model.embed_tokens": Part("embedding.tokens"),
    f"{LAYER}.input_layernorm": Part(f"{OURS}.attention_norm"),
    f"{LAYER}.self_attn.q_proj": Part(f"{OURS}.attention.qkv", 0),
    f"{LAYER}.self_attn.k_proj": Part(f"{OURS}.attention.qkv", 1),
    f"{LAYER}.self_attn.v_proj": Part(f"{OURS}.attention.qkv", 2),
    f"{LAYER}.self_attn.o_proj": Part(f"{OURS}.attention.out"),
    f"{LAYER}.post_attention_layernorm": Part(f"{OURS}.mlp_norm"),
    f"{LAYER}.mlp.gate_proj": Part(f"{OURS}.mlp.gate_up", 0),
    f"{LAYER}.mlp.up_proj": Part(f"{OURS}.mlp.gate_up", 1),
    f"{LAYER}.mlp.down_proj": Part(f"{OURS}.mlp.down"),
    "model.norm": Part("norm"),
    "lm_head": Part("head"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig(ModelConfig):
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    norm_epsilon: float
    activation: str
    attention_bias: bool
    mlp_bias: bool
    rotary: RotaryConfig


def read_config(fields: Fields, generation: Fields | None) -> LlamaConfig:
    hidden_size = fields.integer("hidden_size")
    num_heads = fields.integer("num_attention_heads")
    num_kv_heads = fields.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise fields.error("num_key_value_heads", f"a divisor of num_attention_heads ({num_heads})")
    head_dim = fields.integer("head_dim", hidden_size // num_heads)
    rotary = rotary_config(fields, head_dim=head_dim)
    return LlamaConfig(
        **common(fields, generation, tied=False),
        hidden_size=hidden_size,
        num_layers=fields.integer("num_hidden_layers", high=MAX_LAYERS),
        max_position_embeddings=rotary.max_position_embeddings,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=fields.integer("intermediate_size"),
        norm_epsilon=fields.number("rms_norm_eps", 1e-6),
        activation=fields.activation("hidden_act", "silu"),
        attention_bias=fields.flag("attention_bias", False),
        mlp_bias=fields.flag("mlp_bias", False),
        rotary=rotary,
    )


def build(config: LlamaConfig, on: Placement) -> CausalLM:
    spec = LayerSpec(
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        scale=config.head_dim**-0.5,
    )
    return CausalLM(
        config,
        embedding=Embedding(config.vocab_size, config.hidden_size, on=on),
        rotary=Rotary(config.rotary, on=on),
        blocks=[_block(config, spec, on) for _ in range(config.num_layers)],
        layer_specs=[spec] * config.num_layers,
        norm=RMSNorm(config.hidden_size, epsilon=config.norm_epsilon, on=on),
        on=on,
    )


def _block(config: LlamaConfig, spec: LayerSpec, on: Placement) -> PreNormBlock:
    hidden, bias = config.hidden_size, config.attention_bias
    return PreNormBlock(
        attention_norm=RMSNorm(hidden, epsilon=config.norm_epsilon, on=on),
        attention=Attention(hidden, spec, bias=bias, output_bias=bias, on=on),
        mlp_norm=RMSNorm(hidden, epsilon=config.norm_epsilon, on=on),
        mlp=GatedMLP(hidden, config.intermediate_size, activation=config.activation, bias=config.mlp_bias, on=on),
    )


families.add("llama")(
    Family(read_config=read_config, build=build, names=NAMES, skipped=(r".*\.rotary_emb\.inv_freq",), prefix="model.")
)
