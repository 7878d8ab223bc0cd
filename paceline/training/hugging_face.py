"""The one door to transformers, which only training needs: making, reading and writing a model directory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paceline.core.errors import CheckpointError, ConfigError
from paceline.training.options import ModelShape
from paceline.training.tokenizer import FILES

try:
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, logging
except ImportError as error:
    if not (error.name or "").startswith("transformers"):
        raise
    raise ConfigError("training needs transformers\nInstall it: pip install 'paceline[train]'") from error

logging.disable_progress_bar()


def new_llama(shape: ModelShape, *, vocab_size: int, context: int, bos: int, end: int, pad: int, seed: int) -> Any:
    """A random Llama whose weights depend on the seed alone."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=context,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=end,
        pad_token_id=pad,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def load_frozen(directory: Path, device: torch.device) -> Any:
    """A model in float32 that will not be trained.

    Raises:
        CheckpointError: there is none in ``directory``, or it cannot be read.
    """
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory} holds no model (no config.json)\nGive a Hugging Face model directory.")
    try:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{directory} cannot be read: {error}".split("\n", 1)[0] + "\nWrite it again.") from error
    return model.eval().requires_grad_(False).to(device)


def save_model(model: Any, directory: Path) -> None:
    """Writes the weights in bfloat16; the model is left like that."""
    nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(directory)
    for file in directory.glob("*.safetensors"):  # written for the owner alone, unlike the rest
        file.chmod((directory / "config.json").stat().st_mode)


def copy_tokenizer(source: Path, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
