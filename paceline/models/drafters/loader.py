"""Knows how the directory of a draft module becomes a module beside its target in memory."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from paceline.core.errors import ConfigError
from paceline.layers.placement import Placement
from paceline.models.base import CausalLM
from paceline.models.checkpoint import weights_are_there
from paceline.models.config import DTYPES
from paceline.models.drafters.family import family_of
from paceline.models.drafters.module import DraftModule
from paceline.models.drafters.source import MEDUSA_FILE, DraftSource
from paceline.models.filling import outline_of, read_weights
from paceline.models.hub import configs_of, resolve_model
from paceline.models.planning import expected_layouts
from paceline.models.quantization import Quantization, outline_matrices
from paceline.models.quantization_config import read_quantization


def load_draft_module(
    path: str | Path,
    target: CausalLM,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str | None = None,
    quantization: Quantization | None = None,
) -> DraftModule:
    """Loads the draft module that was trained for ``target``; what its checkpoint lacks it shares with the target.

    Args:
        path: a directory with config.json and safetensors, or a Hub id. Code that its config names is never run.
        target: the model that it drafts for, whose weights were not released yet.
        dtype: the target's, which is also "auto".
        device: the target's, which is also None.
        quantization: how its own linears are quantised while they are read.

    Raises:
        CheckpointError: the directory is incomplete, corrupt or unsupported, or the module does not fit the target.
        ConfigError: another dtype or device than the target's, or a module that cannot be quantised so.
    """
    on = _placement(target, dtype, device)
    directory = resolve_model(path)
    source = DraftSource.read(directory, target, weights=True)
    family = family_of(source)
    config = family.read_config(source)
    module = read_weights(
        directory,
        partial(family.build, config),
        family if family.named is None else family.named(source),
        source.entries,
        on,
        as_stored=read_quantization(source.fields),
        wanted=quantization,
    )
    tokens = family.token_map(source, config)
    module.token_map = None if tokens is None else tokens.to(on.device)
    module.share(target)
    return module.eval()


def outline_draft_module(
    path: str | Path,
    target: CausalLM,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str | None = None,
    quantization: Quantization | None = None,
) -> DraftModule:
    """The module as ``load_draft_module`` would make it: parameters have sizes and no memory.

    Args:
        target: may have no memory either.

    Raises:
        CheckpointError, ConfigError: as ``load_draft_module``.
    """
    on = _placement(target, dtype, device)
    directory = configs_of(path)
    there = weights_are_there(directory) or (directory / MEDUSA_FILE).is_file()
    source = DraftSource.read(directory, target, weights=there)
    family = family_of(source)
    module = outline_of(partial(family.build, family.read_config(source)), directory, on.dtype)
    outline_matrices(module, expected_layouts(module, read_quantization(source.fields), quantization))
    module.share(target)
    return module.eval()


def _placement(target: CausalLM, dtype: torch.dtype | str, device: torch.device | str | None) -> Placement:
    wanted = target.dtype if dtype == "auto" else DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if wanted != target.dtype:
        name = str(target.dtype).removeprefix("torch.")
        raise ConfigError(
            f"dtype of the draft module is {str(dtype).removeprefix('torch.')}, and the target, whose features it "
            f"reads, has {name}\nSet it to auto or {name}."
        )
    place = target.device if device is None else torch.device(device)
    if place.type != target.device.type:
        raise ConfigError(
            f"the draft module is to lie on {place}, and its target on {target.device}\nLeave device out."
        )
    return Placement(target.dtype, target.device)
