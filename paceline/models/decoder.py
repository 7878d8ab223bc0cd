"""Knows the decoder that Llama made common, with every trait in which its relatives differ; no family by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from paceline.core.layer import LayerSpec
from paceline.layers.attention import Attention
from paceline.layers.block import Block, PreNormBlock, SandwichNormBlock
from paceline.layers.embedding import InputEmbedding
from paceline.layers.mlp import GatedMLP
from paceline.layers.norm import HeadNorm, RMSNorm
from paceline.layers.placement import Placement
from paceline.layers.rotary import Rotary
from paceline.layers.rotary_kinds import RotaryConfig
from paceline.models.base import CausalLM
from paceline.models.config import MAX_LAYERS, Fields, ModelConfig, common
from paceline.models.family import LAYER, Part
from paceline.models.rope import rotary_config, windows

THEIRS = "model.layers.{layer}"
NAMES: Mapping[str, Part] = {
    "model.embed_tokens": Part("embedding.tokens"),
    f"{THEIRS}.input_layernorm": Part(f"{LAYER}.attention_norm"),
    f"{THEIRS}.self_attn.q_proj": Part(f"{LAYER}.attention.qkv", 0),
    f"{THEIRS}.self_attn.k_proj": Part(f"{LAYER}.attention.qkv", 1),
    f"{THEIRS}.self_attn.v_proj": Part(f"{LAYER}.attention.qkv", 2),
    f"{THEIRS}.self_attn.o_proj": Part(f"{LAYER}.attention.out"),
    f"{THEIRS}.post_attention_layernorm": Part(f"{LAYER}.mlp_norm"),
    f"{THEIRS}.mlp.gate_proj": Part(f"{LAYER}.mlp.gate_up", 0),
    f"{THEIRS}.mlp.up_proj": Part(f"{LAYER}.mlp.gate_up", 1),
    f"{THEIRS}.mlp.down_proj": Part(f"{LAYER}.mlp.down"),
    "model.norm": Part("norm"),
    "lm_head": Part("head"),
}
HEAD_NORMS: Mapping[str, Part] = {
    f"{THEIRS}.self_attn.q_norm": Part(f"{LAYER}.attention.head_norm", 0, repeated=True),
    f"{THEIRS}.self_attn.k_norm": Part(f"{LAYER}.attention.head_norm", 1, repeated=True),
}
SKIPPED = (r".*\.rotary_emb\.inv_freq", r"mtp\..*")
"""The latter drafts, see paceline.models.drafters.mtp; a model does without."""
PREFIXES = (("", "model."),)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig(ModelConfig):
    """RMSNorm before attention and gated MLP, rotary positions."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    norm_epsilon: float
    activation: str
    score_scale: float
    windows: tuple[int | None, ...]
    """Each layer's attention window."""
    rotaries: tuple[RotaryConfig, ...]
    rotary_of: tuple[int, ...]
    """Each layer's index into ``rotaries``."""
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_norm: bool = False
    """Query and key heads are normed before they are rotated."""
    sandwich: bool = False
    """What attention and MLP give is normed too, before it joins the residual stream."""
    rounds_last: bool = False
    """Norms apply their weight before they round."""
    embedding_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None


def read_decoder(fields: Fields, generation: Fields | None, *, tied: bool = False, **traits: Any) -> DecoderConfig:
    """Reads what all relatives share, under Llama's names; ``traits`` are fields in which the family differs."""
    hidden_size = fields.integer("hidden_size")
    num_layers = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    num_heads = fields.integer("num_attention_heads")
    num_kv_heads = fields.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise fields.error("num_key_value_heads", f"a divisor of num_attention_heads ({num_heads})")
    head_dim = fields.integer("head_dim", hidden_size // num_heads)
    rotaries = traits["rotaries"] if "rotaries" in traits else (rotary_config(fields, head_dim=head_dim),)
    shared = {
        **common(fields, generation, tied=tied),
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "max_position_embeddings": min(rotary.num_positions for rotary in rotaries),
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "intermediate_size": fields.integer("intermediate_size"),
        "norm_epsilon": fields.number("rms_norm_eps", 1e-6),
        "activation": fields.activation("hidden_act", "silu"),
        "score_scale": head_dim**-0.5,
        "windows": windows(fields, window=None, num_layers=num_layers),
        "rotaries": rotaries,
        "rotary_of": (0,) * num_layers,
    }
    return DecoderConfig(**{**shared, **traits})


def build(config: DecoderConfig, on: Placement) -> CausalLM:
    specs = [build_spec(config, window) for window in config.windows]
    return CausalLM(
        config,
        embedding=InputEmbedding(config.vocab_size, config.hidden_size, scale=config.embedding_scale, on=on),
        rotaries=[Rotary(rotary, on=on) for rotary in config.rotaries],
        rotary_of=config.rotary_of,
        blocks=[build_block(config, spec, on) for spec in specs],
        layer_specs=specs,
        norm=build_norm(config, on),
        logit_softcap=config.logit_softcap,
        on=on,
    )


def build_spec(config: DecoderConfig, window: int | None) -> LayerSpec:
    # A window that nothing can leave would only cost a layer group of its own, and shared prefixes.
    slides = window is not None and window < config.max_position_embeddings
    return LayerSpec(
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        scale=config.score_scale,
        window=window if slides else None,
        softcap=config.attention_softcap,
    )


def build_block(config: DecoderConfig, spec: LayerSpec, on: Placement) -> Block:
    norm = partial(build_norm, config, on)
    attention, mlp = build_attention(config, spec, on), build_mlp(config, on)
    if not config.sandwich:
        return PreNormBlock(attention_norm=norm(), attention=attention, mlp_norm=norm(), mlp=mlp)
    return SandwichNormBlock(
        attention_norm=norm(),
        attention=attention,
        attention_out_norm=norm(),
        mlp_norm=norm(),
        mlp=mlp,
        mlp_out_norm=norm(),
    )


def build_attention(config: DecoderConfig, spec: LayerSpec, on: Placement, input_size: int | None = None) -> Attention:
    """``input_size``: width of the rows that are read, if other than ``hidden_size``."""
    return Attention(
        config.hidden_size,
        spec,
        bias=config.qkv_bias,
        output_bias=config.output_bias,
        head_norm=_head_norm(config, on) if config.head_norm else None,
        input_size=input_size,
        on=on,
    )


def build_mlp(config: DecoderConfig, on: Placement) -> GatedMLP:
    activation, bias = config.activation, config.mlp_bias
    return GatedMLP(config.hidden_size, config.intermediate_size, activation=activation, bias=bias, on=on)


def build_norm(config: DecoderConfig, on: Placement, size: int | None = None) -> RMSNorm:
    """Of rows of ``size``, or of ``hidden_size``."""
    size = size or config.hidden_size
    return RMSNorm(size, epsilon=config.norm_epsilon, rounds_last=config.rounds_last, on=on)


def _head_norm(config: DecoderConfig, on: Placement) -> HeadNorm:
    counts, size, epsilon = (config.num_heads, config.num_kv_heads), config.head_dim, config.norm_epsilon
    return HeadNorm(counts, size, epsilon=epsilon, rounds_last=config.rounds_last, on=on)
