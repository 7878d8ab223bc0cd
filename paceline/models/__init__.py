"""The model families, and the way from a Hugging Face directory to a model in memory."""

from paceline.models import gpt2, llama
from paceline.models.base import CausalLM, families
from paceline.models.config import ModelConfig
from paceline.models.hub import resolve_model
from paceline.models.loader import load_config, load_model

# Importing a family's module files it in the registry.
FAMILY_MODULES = (gpt2, llama)

__all__ = ["FAMILY_MODULES", "CausalLM", "ModelConfig", "families", "load_config", "load_model", "resolve_model"]
