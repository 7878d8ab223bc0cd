"""The model families, and the way from a Hugging Face directory to a model in memory."""

from paceline.models import gemma2, gemma3, gpt2, gpt_neox, llama, mimo, mistral, opt, phi3, qwen2, qwen3
from paceline.models.base import CausalLM, head_rows
from paceline.models.config import ModelConfig
from paceline.models.drafters import (
    BlockDraftModule,
    DraftModule,
    HeadLogits,
    MedusaHeads,
    load_draft_module,
    load_medusa_heads,
    outline_draft_module,
    outline_medusa_heads,
)
from paceline.models.family import families
from paceline.models.hub import configs_of, resolve_model, texts_of
from paceline.models.loader import is_quantised, load_config, load_model, outline_model
from paceline.models.quantization import Quantization, schemes

# Importing a family's module files it in the registry.
FAMILY_MODULES = (gemma2, gemma3, gpt2, gpt_neox, llama, mimo, mistral, opt, phi3, qwen2, qwen3)

__all__ = [
    "FAMILY_MODULES",
    "BlockDraftModule",
    "CausalLM",
    "DraftModule",
    "HeadLogits",
    "MedusaHeads",
    "ModelConfig",
    "Quantization",
    "configs_of",
    "families",
    "head_rows",
    "is_quantised",
    "load_config",
    "load_draft_module",
    "load_medusa_heads",
    "load_model",
    "outline_draft_module",
    "outline_medusa_heads",
    "outline_model",
    "resolve_model",
    "schemes",
    "texts_of",
]
