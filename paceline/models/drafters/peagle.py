"""Knows P-EAGLE draft modules (2026, arXiv 2602.01469): EAGLE-3 whose tokens come of one pass, as vLLM stores it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from paceline.layers.placement import Placement
from paceline.models.drafters import eagle3
from paceline.models.drafters.block import BlockDraftModule, BlockSpec, mask_token
from paceline.models.drafters.eagle3 import Eagle3Config
from paceline.models.drafters.family import DraftFamily, draft_modules
from paceline.models.drafters.module import DraftModule
from paceline.models.drafters.source import DraftSource
from paceline.models.family import Part, TensorNames

MASK = "mask_hidden"
NAMES = TensorNames(
    names={**eagle3.NAMES.names, MASK: Part("mask")},
    # The mask is a tensor of no module in their files.
    prefixes=(*eagle3.NAMES.prefixes, (MASK, f"{MASK}.weight"), (f"model.{MASK}", f"{MASK}.weight")),
    skipped=eagle3.NAMES.skipped,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PEagleConfig(Eagle3Config):
    """A P-EAGLE draft module."""

    block: BlockSpec


def recognises(source: DraftSource) -> bool:
    return eagle3.drafts_in_parallel(source)


def read_config(source: DraftSource) -> PEagleConfig:
    config = eagle3.read_config(source)
    fields = {name: getattr(config, name) for name in Eagle3Config.__dataclass_fields__}
    return PEagleConfig(**fields, block=BlockSpec(mask_token_id=mask_token(source, source.fields)))


def build(config: PEagleConfig, on: Placement) -> DraftModule:
    mask_size = len(config.taps) * config.target_size
    return eagle3.build(config, on, make=partial(BlockDraftModule, block=config.block, mask_size=mask_size))


draft_modules.add("peagle")(
    DraftFamily.of(NAMES, recognises=recognises, read_config=read_config, build=build, token_map=eagle3.token_map)
)
