"""Draft modules that read what their target computed, and the way from their directories to memory."""

from paceline.models.drafters import dflash, eagle, eagle3, mtp, peagle
from paceline.models.drafters.block import BlockDraftModule
from paceline.models.drafters.family import DraftFamily, draft_modules
from paceline.models.drafters.loader import load_draft_module, outline_draft_module
from paceline.models.drafters.medusa import load_medusa_heads, outline_medusa_heads
from paceline.models.drafters.medusa_heads import HeadLogits, MedusaHeads
from paceline.models.drafters.module import DraftModule

# Importing a layout's module files it in the registry.
LAYOUT_MODULES = (dflash, eagle, eagle3, mtp, peagle)

__all__ = [
    "LAYOUT_MODULES",
    "BlockDraftModule",
    "DraftFamily",
    "DraftModule",
    "HeadLogits",
    "MedusaHeads",
    "draft_modules",
    "load_draft_module",
    "load_medusa_heads",
    "outline_draft_module",
    "outline_medusa_heads",
]
