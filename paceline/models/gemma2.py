"""Knows the Gemma 2 family (arXiv 2408.00118): norms on both sides, soft caps, a window on every second layer."""

from __future__ import annotations

from typing import Any

from paceline.models.config import MAX_LAYERS, Fields
from paceline.models.decoder import NAMES, PREFIXES, SKIPPED, THEIRS, DecoderConfig, build, read_decoder
from paceline.models.family import LAYER, Family, Part, families
from paceline.models.rope import windows

# The checkpoint stores norm weights less one.
NORMS = {
    f"{THEIRS}.input_layernorm": Part(f"{LAYER}.attention_norm", plus=1.0),
    f"{THEIRS}.post_attention_layernorm": Part(f"{LAYER}.attention_out_norm", plus=1.0),
    f"{THEIRS}.pre_feedforward_layernorm": Part(f"{LAYER}.mlp_norm", plus=1.0),
    f"{THEIRS}.post_feedforward_layernorm": Part(f"{LAYER}.mlp_out_norm", plus=1.0),
    "model.norm": Part("norm", plus=1.0),
}
SANDWICH_NAMES = {**NAMES, **NORMS}
# What its config classes assume where a file is silent.
DEFAULTS: dict[str, Any] = {"head_dim": 256, "query_pre_attn_scalar": 256}


def read_config(fields: Fields, generation: Fields | None) -> DecoderConfig:
    fields = fields.filled(**DEFAULTS)
    slides = windows(
        fields,
        window=fields.integer("sliding_window", 4096),
        num_layers=fields.integer("num_hidden_layers", high=MAX_LAYERS),
        slides=lambda layer: layer % 2 == 0,
    )
    return read_gemma(fields, generation, windows=slides, attention_softcap=50.0, logit_softcap=30.0)


def read_gemma(
    fields: Fields,
    generation: Fields | None,
    *,
    attention_softcap: float | None,
    logit_softcap: float | None,
    **traits: Any,
) -> DecoderConfig:
    """What Gemma 2 and 3 share; the soft caps are those of files that are silent."""
    if fields.flag("use_bidirectional_attention", False):
        raise fields.error("use_bidirectional_attention", "false: encoders are not supported")
    bias = fields.flag("attention_bias", False)
    return read_decoder(
        fields,
        generation,
        tied=True,
        activation=fields.activation("hidden_activation", "gelu_pytorch_tanh"),
        score_scale=fields.number("query_pre_attn_scalar") ** -0.5,
        qkv_bias=bias,
        output_bias=bias,
        sandwich=True,
        rounds_last=True,
        embedding_scale=fields.integer("hidden_size") ** 0.5,
        attention_softcap=fields.number_or_none("attn_logit_softcapping", attention_softcap),
        logit_softcap=fields.number_or_none("final_logit_softcapping", logit_softcap),
        **traits,
    )


families.add("gemma2")(
    Family(read_config=read_config, build=build, names=SANDWICH_NAMES, skipped=SKIPPED, prefixes=PREFIXES)
)
