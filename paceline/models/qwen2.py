"""Knows the Qwen2 family (Qwen2, Qwen2.5; arXiv 2412.15115): Llama with biases on query, key and value."""

from __future__ import annotations

from paceline.models.config import MAX_LAYERS, Fields
from paceline.models.decoder import NAMES, PREFIXES, SKIPPED, DecoderConfig, build, read_decoder
from paceline.models.family import Family, families
from paceline.models.rope import windows


def read_config(fields: Fields, generation: Fields | None) -> DecoderConfig:
    return read_decoder(fields, generation, qkv_bias=True, windows=late_windows(fields))


def late_windows(fields: Fields) -> tuple[int | None, ...]:
    """Windows on the layers from ``max_window_layers`` on, if ``use_sliding_window`` says that there are any."""
    used = fields.flag("use_sliding_window", False)
    first = fields.integer("max_window_layers", 28, low=0)
    return windows(
        fields,
        window=fields.integer_or_none("sliding_window", 4096) if used else None,
        num_layers=fields.integer("num_hidden_layers", high=MAX_LAYERS),
        slides=lambda layer: layer >= first,
    )


families.add("qwen2")(Family(read_config=read_config, build=build, names=NAMES, skipped=SKIPPED, prefixes=PREFIXES))
