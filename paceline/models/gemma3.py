"""Knows the Gemma 3 family (arXiv 2503.19786) as text model, also where it lies within one that sees images too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from paceline.models.config import MAX_LAYERS, Fields
from paceline.models.decoder import HEAD_NORMS, PREFIXES, SKIPPED, DecoderConfig, build
from paceline.models.family import Family, families
from paceline.models.gemma2 import DEFAULTS, SANDWICH_NAMES, read_gemma
from paceline.models.rope import rotary_by_layer_type, windows

# The larger checkpoints' text_config names only what differs from these.
TEXT_DEFAULTS: dict[str, Any] = DEFAULTS | {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131_072,
}
BESIDE_TEXT = ("eos_token_id", "bos_token_id", "dtype", "torch_dtype", "tie_word_embeddings")
"""Of a config with a text_config, what counts for the text too."""


def read_config(fields: Fields, generation: Fields | None) -> DecoderConfig:
    fields = fields.filled(**TEXT_DEFAULTS)
    period = fields.integer("sliding_window_pattern", fields.integer("_sliding_window_pattern", 6))
    window = fields.integer("sliding_window", 4096)
    slides = windows(
        fields,
        window=window,
        num_layers=fields.integer("num_hidden_layers", high=MAX_LAYERS),
        slides=lambda layer: (layer + 1) % period != 0,
    )
    if "attn_logit_softcapping" in fields.values:  # transformers has the option and does nothing with it
        raise fields.error("attn_logit_softcapping", "null: attention scores of Gemma 3 are not capped")
    head_dim = fields.integer("head_dim")
    return read_gemma(
        fields,
        generation,
        windows=slides,
        attention_softcap=None,
        logit_softcap=None,
        head_norm=True,
        rotaries=rotary_by_layer_type(fields, head_dim=head_dim, theta=1e6, local_theta=1e4),
        rotary_of=tuple(0 if width is None else 1 for width in slides),
    )


def read_nested_config(fields: Fields, generation: Fields | None) -> DecoderConfig:
    beside = {key: fields.values.get(key) for key in BESIDE_TEXT}
    return replace(
        read_config(fields.nested("text_config").filled(**beside, model_type="gemma3_text"), generation),
        family="gemma3",
    )


TEXT = Family(
    read_config=read_config,
    build=build,
    names={**SANDWICH_NAMES, **{name: replace(part, plus=1.0) for name, part in HEAD_NORMS.items()}},
    skipped=SKIPPED,
    prefixes=PREFIXES,
)
families.add("gemma3_text")(TEXT)
families.add("gemma3")(
    replace(
        TEXT,
        read_config=read_nested_config,
        skipped=(*SKIPPED, r"(model\.)?(vision_tower|multi_modal_projector)\..*"),
        prefixes=(("language_model.", ""), ("model.language_model.", "model.")),
    )
)
