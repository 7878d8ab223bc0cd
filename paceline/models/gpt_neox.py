"""Knows the GPT-NeoX family (Pythia; Black et al. 2022, arXiv 2204.06745): attention and MLP side by side."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.layers.block import ParallelBlock, PreNormBlock
from paceline.layers.embedding import InputEmbedding
from paceline.layers.placement import Placement
from paceline.layers.rotary import Rotary
from paceline.layers.rotary_kinds import RotaryConfig
from paceline.models.base import CausalLM
from paceline.models.classic import ClassicConfig, classic_block, heads_alike, layer_norm, read_heads
from paceline.models.config import MAX_LAYERS, Fields, common
from paceline.models.family import LAYER, Family, Part, families
from paceline.models.rope import rotary_config

THEIRS = "gpt_neox.layers.{layer}"
NAMES = {
    "gpt_neox.embed_in": Part("embedding.tokens"),
    f"{THEIRS}.input_layernorm": Part(f"{LAYER}.attention_norm"),
    f"{THEIRS}.attention.query_key_value": Part(f"{LAYER}.attention.qkv", by_unit=True),
    f"{THEIRS}.attention.dense": Part(f"{LAYER}.attention.out"),
    f"{THEIRS}.post_attention_layernorm": Part(f"{LAYER}.mlp_norm"),
    f"{THEIRS}.mlp.dense_h_to_4h": Part(f"{LAYER}.mlp.up"),
    f"{THEIRS}.mlp.dense_4h_to_h": Part(f"{LAYER}.mlp.down"),
    "gpt_neox.final_layer_norm": Part("norm"),
    "embed_out": Part("head"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GPTNeoXConfig(ClassicConfig):
    rotary: RotaryConfig
    parallel: bool
    """Attention and MLP read the same residual stream; else one after the other."""


def read_config(fields: Fields, generation: Fields | None) -> GPTNeoXConfig:
    num_heads, hidden_size = read_heads(fields, "num_attention_heads", "hidden_size")
    # Files before Transformers 5 have names of their own.
    share = fields.values.get("rotary_pct", 0.25)
    named = fields.filled(rope_theta=fields.values.get("rotary_emb_base"), partial_rotary_factor=share)
    rotary = rotary_config(named, head_dim=hidden_size // num_heads)
    return GPTNeoXConfig(
        **common(fields, generation, tied=False),
        hidden_size=hidden_size,
        num_layers=fields.integer("num_hidden_layers", high=MAX_LAYERS),
        max_position_embeddings=rotary.num_positions,
        num_heads=num_heads,
        intermediate_size=fields.integer("intermediate_size"),
        norm_epsilon=fields.number("layer_norm_eps", 1e-5),
        activation=fields.activation("hidden_act", "gelu"),
        attention_bias=fields.flag("attention_bias", True),
        mlp_bias=True,
        rotary=rotary,
        parallel=fields.flag("use_parallel_residual", True),
    )


def build(config: GPTNeoXConfig, on: Placement) -> CausalLM:
    spec, kind = heads_alike(config), ParallelBlock if config.parallel else PreNormBlock
    return CausalLM(
        config,
        embedding=InputEmbedding(config.vocab_size, config.hidden_size, on=on),
        rotaries=[Rotary(config.rotary, on=on)],
        blocks=[classic_block(kind, config, spec, on) for _ in range(config.num_layers)],
        layer_specs=[spec] * config.num_layers,
        norm=layer_norm(config, on),
        on=on,
    )


families.add("gpt_neox")(
    Family(
        read_config=read_config,
        build=build,
        names=NAMES,
        skipped=(r".*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
        prefixes=(("lm_head.", "embed_out."), ("", "gpt_neox.")),
    )
)
