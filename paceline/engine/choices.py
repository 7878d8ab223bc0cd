"""What options mean on this machine and for this model: device, types, quantisation, implementation."""

from __future__ import annotations

from pathlib import Path

import torch

from paceline.core.config import EngineConfig
from paceline.core.errors import ConfigError
from paceline.models import Quantization, is_quantised, outline_model
from paceline.models.config import DTYPES
from paceline.runner import Choice, model_impls, resolve_impl


def resolve_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ConfigError(f"unknown device {name!r}\nChoose one of: auto, cpu, cuda, cuda:0, ...") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} is not supported\nChoose one of: auto, cpu, cuda, cuda:0, ...")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError('device="cuda" was asked for, but torch sees no GPU\nSet device="cpu" or "auto".')
    return device


def resolve_dtype(config: EngineConfig, model: str | Path, device: torch.device) -> torch.dtype:
    """ "auto" is the checkpoint's type on a GPU and with native kernels, float32 else.

    Torch on a CPU rounds a row's logits differently with the number of rows beside it, and the coarse steps of the
    half types make ties common: float32 keeps "the same text with speculation on or off" true there.
    """
    if config.dtype != "auto":
        if config.dtype not in DTYPES:
            raise ConfigError(f"unknown dtype {config.dtype!r}\nChoose one of: auto, {', '.join(DTYPES)}.")
        return DTYPES[config.dtype]
    own = outline_model(model, device=device)
    keeps_half = device.type != "cpu" or model_impls[resolve_impl(impl_choice(config), own, device)].keeps_half
    return own.dtype if keeps_half else torch.float32


def impl_choice(config: EngineConfig) -> Choice:
    return Choice(config.model_impl, config.attention_backend, config.numerics)


def target_quantization(config: EngineConfig) -> Quantization | None:
    """What the options want of the target's weights; None: as they are stored."""
    return None if config.quantization is None else Quantization(config.quantization, config.quantization_group_size)


def draft_quantization(config: EngineConfig, model: str | Path) -> Quantization | None:
    """The same of the draft model's: as the target's, unless the options say otherwise or it is stored quantised."""
    wanted = config.speculative.draft_quantization if config.speculative else None
    if wanted is None:
        return None if is_quantised(model) else target_quantization(config)
    return None if wanted == "none" else Quantization(wanted, config.quantization_group_size)
