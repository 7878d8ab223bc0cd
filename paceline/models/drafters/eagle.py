"""Knows EAGLE-1 and EAGLE-2 draft modules (Li et al. 2024, arXiv 2401.15077 and 2406.16858), which are stored alike."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from paceline.layers.block import Block, PreNormBlock
from paceline.layers.linear import Linear
from paceline.layers.placement import Placement
from paceline.models.decoder import build_attention, build_block, build_mlp, build_norm, build_spec
from paceline.models.drafters.family import DraftFamily, draft_modules
from paceline.models.drafters.layers import FIRST, LAYER_NAMES, read_layers
from paceline.models.drafters.module import DraftConfig, DraftModule, JoinedLinear
from paceline.models.drafters.source import DraftSource
from paceline.models.drafters.vocabulary import check_sharing, shares_table
from paceline.models.family import Part, TensorNames

NORMS = ("hidden_norm", "input_layernorm")
"""What other modules have before their first layer."""
NAMES = TensorNames(
    names={**LAYER_NAMES, "fc": Part("entry.linear")},
    prefixes=(
        ("midlayer.", f"{FIRST}."),
        ("model.midlayer.", f"{FIRST}."),
        ("model.", ""),
        ("transformer.", f"{FIRST}."),
        ("fusion_fc.", "fc."),
    ),
    skipped=(
        r"(model\.)?embed_tokens\.weight",  # the same numbers as the target's
        r".*\.rotary_emb\.inv_freq",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EagleConfig(DraftConfig):
    """An EAGLE-1 draft module."""

    biased: bool
    """What joins token and feature has a bias."""


def recognises(source: DraftSource) -> bool:
    if source.entries:
        tensors = source.under(NAMES)
        normed = any(tensors.has_module(f"{FIRST}.{name}", unknown=False) for name in NORMS)
        own = all(tensors.has_module(name, unknown=False) for name in ("fc", f"{FIRST}.self_attn.q_proj"))
        return own and not normed
    return any(re.search(r"(?<!p)eagle(?!3)", kind) for kind in source.kinds)


def read_config(source: DraftSource) -> EagleConfig:
    fields, tensors = source.fields, source.under(NAMES)
    layer = source.layer_fields("transformer_layer_config", "model")
    own: dict[str, Any] = read_layers(source, layer, tensors)
    config = EagleConfig(
        **own,
        taps=(),  # it reads what leaves the final norm
        head_rows=source.target.config.vocab_size,
        shares_table=shares_table(source, tensors),
        shares_head=True,
        biased=tensors.has("fc.bias", unknown=fields.flag("fusion_bias", fields.flag("bias", True))),
    )
    check_sharing(source, config, layer)
    return config


def build(config: EagleConfig, on: Placement) -> DraftModule:
    specs = [build_spec(config, window) for window in config.windows]
    size = config.hidden_size
    first: Block = PreNormBlock(
        attention_norm=nn.Identity(),  # what joins token and feature is not normed
        attention=build_attention(config, specs[0], on),
        mlp_norm=build_norm(config, on),
        mlp=build_mlp(config, on),
    )
    return DraftModule(
        config,
        blocks=[first, *(build_block(config, spec, on) for spec in specs[1:])],
        layer_specs=specs,
        norm=nn.Identity(),  # what leaves the last layer stands for what left the target's final norm
        entry=JoinedLinear(Linear.empty(2 * size, (size,), bias=config.biased, on=on), size),
        fuse=nn.Identity(),
        on=on,
    )


draft_modules.add("eagle")(DraftFamily.of(NAMES, recognises=recognises, read_config=read_config, build=build))
