"""Knows which tensor of a checkpoint fills which parameter; nothing of files' content."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from paceline.core.errors import CheckpointError
from paceline.layers.linear import Linear
from paceline.layers.norm import HeadNorm
from paceline.models.base import CausalLM
from paceline.models.checkpoint import FLOATS, Entry
from paceline.models.family import Family, Part

MISMATCH = "config.json and the safetensors do not describe the same model; download both again."


@dataclass(frozen=True, slots=True)
class Destination:
    """A view into the model's parameters that one checkpoint tensor fills."""

    tensor: torch.Tensor
    part: Part

    @property
    def shape(self) -> tuple[int, ...]:
        """As the checkpoint stores it."""
        if self.part.transposed:
            return tuple(self.tensor.t().shape)
        if self.part.repeated:
            return tuple(self.tensor.shape[1:])
        if self.part.by_unit:
            return (self.tensor.shape[:3].numel(), *self.tensor.shape[3:])
        return tuple(self.tensor.shape)

    def fill(self, source: torch.Tensor) -> None:
        if self.part.transposed:
            source = source.t()
        if self.part.by_unit:
            source = source.view(self.tensor.shape)
        self.tensor.copy_(source)  # repeats a single row
        if self.part.plus:
            self.tensor.add_(self.part.plus)


def destinations(model: CausalLM, family: Family) -> dict[str, Destination]:
    """Checkpoint tensor name -> the parameter view that it fills."""
    return {
        f"{theirs}.{name}": Destination(tensor, part)
        for pattern, part in family.names.items()
        if not (part.module == "head" and model.config.tied)
        for theirs, ours in _expand(pattern, part.module, model.config.num_layers)
        for name, tensor in _tensors(_module(model, ours), part)
    }


def _expand(theirs: str, ours: str, num_layers: int) -> list[tuple[str, str]]:
    layers = range(num_layers) if "{layer}" in theirs else range(1)
    return [(theirs.format(layer=layer), ours.format(layer=layer)) for layer in layers]


def _module(model: CausalLM, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return nn.Identity()  # this model does without


def _tensors(module: nn.Module, part: Part) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in module.named_parameters(recurse=False):
        if part.by_unit and isinstance(module, Linear):
            yield name, module.by_unit(name)
        elif part.index is not None and isinstance(module, Linear | HeadNorm):
            yield name, module.part(name, part.index)
        else:
            yield name, parameter.detach()


def match(
    entries: Sequence[Entry], wanted: Mapping[str, Destination], family: Family, directory: Path
) -> dict[str, Entry]:
    """Wanted name -> the entry that fills it; every tensor of the checkpoint must have its place.

    Raises:
        CheckpointError: a tensor is unexpected, missing, there twice, or of another shape or type than it should be.
    """
    placed: dict[str, Entry] = {}
    for entry in entries:
        names = _names(entry, family)
        name = next((name for name in names if name in wanted), None)
        if name is None:
            if not _skipped(names, family):
                raise CheckpointError(f"{entry.file}: unexpected tensor {entry.name!r}\n{MISMATCH}")
            continue
        if name in placed:
            raise CheckpointError(f"{entry.file}: tensor {name!r} comes twice, the other in {placed[name].file}")
        _check(entry, wanted[name])
        placed[name] = entry
    missing = [name for name in wanted if name not in placed]
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise CheckpointError(f"{directory}: tensor {missing[0]!r}{more} is missing from the safetensors\n{MISMATCH}")
    return placed


def _names(entry: Entry, family: Family) -> list[str]:
    """What the family may call the tensor: its own name first, then with an export's prefix put right."""
    matching = [(theirs, ours) for theirs, ours in family.prefixes if entry.name.startswith(theirs)]
    return [entry.name, *(ours + entry.name.removeprefix(theirs) for theirs, ours in matching)]


def _check(entry: Entry, wanted: Destination) -> None:
    if entry.shape != wanted.shape:
        shapes = f"has shape {list(entry.shape)}, config.json implies {list(wanted.shape)}"
        raise CheckpointError(f"{entry.file}: tensor {entry.name!r} {shapes}\n{MISMATCH}")
    if entry.dtype not in FLOATS:
        raise CheckpointError(f"{entry.file}: tensor {entry.name!r} is {entry.dtype}, not one of {', '.join(FLOATS)}")


def _skipped(names: Sequence[str], family: Family) -> bool:
    # A tied checkpoint may store the embedding a second time as its output matrix; the embedding is what counts.
    heads = {f"{theirs}.weight" for theirs, part in family.names.items() if part.module == "head"}
    return bool(heads.intersection(names)) or any(re.fullmatch(pattern, names[0]) for pattern in family.skipped)
