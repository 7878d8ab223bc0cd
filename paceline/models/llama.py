"""Knows the Llama family (Llama 2, 3, 3.1, 3.2; Touvron et al. 2023, arXiv 2307.09288)."""

from __future__ import annotations

from paceline.models.config import Fields
from paceline.models.decoder import NAMES, PREFIXES, SKIPPED, DecoderConfig, build, read_decoder
from paceline.models.family import Family, families


def read_config(fields: Fields, generation: Fields | None) -> DecoderConfig:
    bias = fields.flag("attention_bias", False)
    return read_decoder(fields, generation, qkv_bias=bias, output_bias=bias, mlp_bias=fields.flag("mlp_bias", False))


families.add("llama")(Family(read_config=read_config, build=build, names=NAMES, skipped=SKIPPED, prefixes=PREFIXES))
