"""Knows which tensor of a checkpoint fills which parameter; nothing of files' content."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from paceline.core.errors import CheckpointError
from paceline.layers.linear import Linear
from paceline.layers.norm import HeadNorm
from paceline.models.base import LoadedModule
from paceline.models.checkpoint import INDEX, TensorEntry, why_incomplete
from paceline.models.compressed import Stored
from paceline.models.destination import Destination, ExpectedShape, Quantising, Scales
from paceline.models.family import Part, TensorNames
from paceline.models.quantization import UNQUANTISED, QuantizationPlan

MISMATCH = "config.json and the safetensors do not describe the same model; download both again."
UNSUPPORTED = {
    "weight_zero_point": "zero points",
    "weight_g_idx": "groups in the order of activations",
    "input_scale": "static scales of activations",
    "input_zero_point": "zero points of activations",
    "output_scale": "scales of outputs",
    "k_scale": "scales of the K/V cache",
    "v_scale": "scales of the K/V cache",
}
"""Tensors of quantised checkpoints that nothing here reads, and what they mean."""


@dataclass(frozen=True, slots=True)
class Place:
    """A checkpoint module's name, and what of the model it fills."""

    theirs: str
    ours: str
    module: nn.Module
    part: Part


def places(model: LoadedModule, family: TensorNames) -> list[Place]:
    """What every checkpoint module fills; a tied head is filled by none."""
    return [
        Place(theirs, ours, _module(model, ours), part)
        for pattern, part in family.names.items()
        if not (part.module == "head" and model.config.tied)
        for theirs, ours in _expand(pattern, part.module, model.config.num_layers)
    ]


def destinations(
    model: LoadedModule,
    family: TensorNames,
    plan: QuantizationPlan = UNQUANTISED,
    stored: Mapping[str, Stored] | None = None,
) -> dict[str, Destination]:
    """Checkpoint tensor name -> what it fills; ``stored`` has room for the matrices that the plan names."""
    return {
        f"{place.theirs}.{name}": destination
        for place in places(model, family)
        for name, destination in _destinations(place, plan, (stored or {}).get(place.ours))
    }


def _destinations(place: Place, plan: QuantizationPlan, stored: Stored | None) -> Iterator[tuple[str, Destination]]:
    for name, tensor in _tensors(place.module, place.part):
        if name == "weight" and stored is not None:
            assert isinstance(place.module, Linear)
            as_read = place.ours in plan.read
            yield from _read(place, stored) if as_read else [(name, _made(place, stored, tensor))]
        else:
            yield name, Destination(tensor, place.part)


def _read(place: Place, stored: Stored) -> Iterator[tuple[str, Destination]]:
    """Integers and scales, always [out, in]: what stores them has no other layout."""
    layout, part = stored.layout, replace(place.part, transposed=False)
    scale = _rows(place, stored.scale)
    yield layout.integers, Destination(_rows(place, stored.integers), part)
    yield "weight_scale", Scales(scale, part, layout.shares_scale)
    if layout.packs:
        rows = scale.shape[:3].numel() if part.by_unit else scale.shape[0]
        yield "weight_shape", ExpectedShape(torch.tensor([rows, stored.in_features]), Part(place.ours))


def _made(place: Place, stored: Stored, outline: torch.Tensor) -> Destination:
    part = replace(place.part, transposed=False)
    integers, scale = (Destination(_rows(place, tensor), part) for tensor in (stored.integers, stored.scale))
    return Quantising(outline, place.part, stored.layout, integers, scale)


def _rows(place: Place, tensor: torch.Tensor) -> torch.Tensor:
    """The part's rows of a tensor [out, ...] of its linear."""
    assert isinstance(place.module, Linear)
    if place.part.by_unit:
        return place.module.by_unit_of(tensor)
    return tensor if place.part.index is None else place.module.part_of(tensor, place.part.index)


def _expand(theirs: str, ours: str, num_layers: int) -> list[tuple[str, str]]:
    layers = range(num_layers) if "{layer}" in theirs else range(1)
    return [(theirs.format(layer=layer), ours.format(layer=layer)) for layer in layers]


def _module(model: LoadedModule, name: str) -> nn.Module:
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
    entries: Sequence[TensorEntry], wanted: Mapping[str, Destination], family: TensorNames, directory: Path
) -> dict[str, TensorEntry]:
    """Wanted name -> the entry that fills it; every tensor of the checkpoint must have its place.

    Raises:
        CheckpointError: a tensor is unexpected, missing, there twice, or of another shape or type than it should be.
    """
    placed: dict[str, TensorEntry] = {}
    for entry in entries:
        names = names_of(entry, family)
        name = next((name for name in names if name in wanted), None)
        if name is None:
            if not _skipped(names, family):
                raise _unexpected(entry)
            continue
        if name in placed:
            raise CheckpointError(f"{entry.file}: tensor {name!r} comes twice, the other in {placed[name].file}")
        _check(entry, wanted[name])
        placed[name] = entry
    missing = [name for name in wanted if name not in placed]
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        why = why_incomplete(directory)
        advice = MISMATCH if why is None else f"{INDEX} cannot be used either: {why}; download the model again."
        raise CheckpointError(f"{directory}: tensor {missing[0]!r}{more} is missing from the safetensors\n{advice}")
    return placed


def names_of(entry: TensorEntry, family: TensorNames) -> list[str]:
    """What the family may call the tensor: its own name first, then with an export's prefix put right."""
    matching = [(theirs, ours) for theirs, ours in family.prefixes if entry.name.startswith(theirs)]
    return [entry.name, *(ours + entry.name.removeprefix(theirs) for theirs, ours in matching)]


def _unexpected(entry: TensorEntry) -> CheckpointError:
    name = entry.name.rpartition(".")[2]
    why = UNSUPPORTED.get(name)
    if why is None:
        return CheckpointError(f"{entry.file}: unexpected tensor {entry.name!r}\n{MISMATCH}")
    return CheckpointError(
        f"{entry.file}: tensor {entry.name!r} belongs to a quantisation with {why}, which is not supported\n"
        'Give the unquantised model, and quantization="int8" or "int4" (or `paceline quantize` it once).'
    )


def _check(entry: TensorEntry, wanted: Destination) -> None:
    if not wanted.accepts(entry.shape):
        shapes = f"has shape {list(entry.shape)}, config.json implies {list(wanted.shape)}"
        raise CheckpointError(f"{entry.file}: tensor {entry.name!r} {shapes}\n{MISMATCH}")
    if entry.dtype not in wanted.types:
        allowed = wanted.types[0] if wanted.types[1:] == () else f"one of {', '.join(wanted.types)}"
        raise CheckpointError(f"{entry.file}: tensor {entry.name!r} is {entry.dtype}, not {allowed}")


def _skipped(names: Sequence[str], family: TensorNames) -> bool:
    # A tied checkpoint may store the embedding a second time as its output matrix; the embedding is what counts.
    heads = {f"{theirs}.weight" for theirs, part in family.names.items() if part.module == "head"}
    return bool(heads.intersection(names)) or any(re.fullmatch(pattern, names[0]) for pattern in family.skipped)
