"""Knows the Mistral family (7B, Nemo; Jiang et al. 2023, arXiv 2310.06825): Llama with a window on all layers."""

from __future__ import annotations

from paceline.models.config import MAX_LAYERS, Fields
from paceline.models.decoder import NAMES, PREFIXES, SKIPPED, DecoderConfig, build, read_decoder
from paceline.models.family import Family, families


def read_config(fields: Fields, generation: Fields | None) -> DecoderConfig:
    num_layers = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    window = fields.integer_or_none("sliding_window", 4096)
    return read_decoder(fields, generation, windows=(window,) * num_layers)


families.add("mistral")(Family(read_config=read_config, build=build, names=NAMES, skipped=SKIPPED, prefixes=PREFIXES))
