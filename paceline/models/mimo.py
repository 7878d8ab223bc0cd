"""Knows the MiMo family (MiMo-7B; Xiaomi 2025, arXiv 2505.07608): Qwen2 that carries modules for later tokens."""

from __future__ import annotations

from paceline.models.decoder import NAMES, PREFIXES, SKIPPED, build
from paceline.models.family import Family, families
from paceline.models.qwen2 import read_config

# Those modules draft, see paceline.models.drafters.mtp; the model itself does without.
DRAFTING = r"model\.mtp_layers\..*"

families.add("mimo")(
    Family(read_config=read_config, build=build, names=NAMES, skipped=(*SKIPPED, DRAFTING), prefixes=PREFIXES)
)
