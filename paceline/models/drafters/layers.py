"""Knows how config and tensors describe the decoder layers of a draft module; no layout by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from paceline.layers.rotary_kinds import RotaryConfig, rotary_kinds
from paceline.models.config import Fields
from paceline.models.decoder import HEAD_NORMS, NAMES, DecoderConfig, read_decoder
from paceline.models.drafters.source import DraftSource, Tensors
from paceline.models.family import Part
from paceline.models.rope import rotary_config, windows

LAYER_NAMES: Mapping[str, Part] = {name.removeprefix("model."): part for name, part in {**NAMES, **HEAD_NORMS}.items()}
"""Llama's names, of a module whose tensors have no prefix."""
FIRST = "layers.0"


def read_layers(source: DraftSource, fields: Fields, tensors: Tensors) -> dict[str, Any]:
    """The fields of DecoderConfig: sizes from ``fields``, biases and head norms from the tensors, the rest from
    the target.

    Raises:
        CheckpointError: a config that is broken.
    """
    target = source.target.config
    said = fields.values.get("attention_bias") is True
    fields = fields.filled(model_type="llama", num_hidden_layers=1, vocab_size=target.vocab_size)
    num_layers = fields.integer("num_hidden_layers")
    if not isinstance(types := fields.values.get("layer_types"), list) or len(types) != num_layers:
        fields.values.pop("layer_types", None)  # a list of the target's layers that was left in
    num_heads = fields.integer("num_attention_heads")
    head_dim = fields.integer("head_dim", max(1, fields.integer("hidden_size") // num_heads))
    rotary = _reaching(rotary_config(fields, head_dim=head_dim), target.max_position_embeddings)
    window = fields.integer_or_none("sliding_window", None)
    read = read_decoder(
        fields,
        None,
        qkv_bias=tensors.has(f"{FIRST}.self_attn.q_proj.bias", unknown=said),
        output_bias=tensors.has(f"{FIRST}.self_attn.o_proj.bias", unknown=said),
        mlp_bias=tensors.has(f"{FIRST}.mlp.down_proj.bias", unknown=fields.values.get("mlp_bias") is True),
        head_norm=tensors.has_module(f"{FIRST}.self_attn.q_norm", unknown=fields.values["model_type"] == "qwen3"),
        windows=windows(fields, window=window, num_layers=num_layers, slides=lambda _: False),
        rotaries=(rotary,),
        vocab_size=target.vocab_size,
        eos_token_ids=target.eos_token_ids,
        bos_token_id=target.bos_token_id,
        tied=False,
    )
    return {name: getattr(read, name) for name in DecoderConfig.__dataclass_fields__}


def _reaching(rotary: RotaryConfig, num_positions: int) -> RotaryConfig:
    """The same angles for as many positions as the target has: configs of draft modules often say 2048."""
    if rotary_kinds[rotary.kind].regimes is not None:
        return rotary
    return replace(rotary, max_position_embeddings=max(rotary.max_position_embeddings, num_positions))
