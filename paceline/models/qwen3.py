"""Knows the dense Qwen3 family (arXiv 2505.09388): Llama whose query and key heads are normed."""

from __future__ import annotations

from paceline.models.config import Fields
from paceline.models.decoder import HEAD_NORMS, NAMES, PREFIXES, SKIPPED, DecoderConfig, build, read_decoder
from paceline.models.family import Family, families
from paceline.models.qwen2 import late_windows


def read_config(fields: Fields, generation: Fields | None) -> DecoderConfig:
    bias = fields.flag("attention_bias", False)
    return read_decoder(
        fields.filled(head_dim=128),
        generation,
        head_norm=True,
        qkv_bias=bias,
        output_bias=bias,
        windows=late_windows(fields),
    )


families.add("qwen3")(
    Family(read_config=read_config, build=build, names={**NAMES, **HEAD_NORMS}, skipped=SKIPPED, prefixes=PREFIXES)
)
