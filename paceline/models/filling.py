"""Knows how the tensors of a checkpoint get into a model: checked against its outline first, then streamed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from paceline.core.errors import CheckpointError
from paceline.layers.placement import Placement
from paceline.models.base import CausalLM, LoadedModule
from paceline.models.checkpoint import TensorEntry, opened
from paceline.models.compressed import Stored
from paceline.models.destination import Destination
from paceline.models.family import Part, TensorNames
from paceline.models.placing import MISMATCH, destinations, match
from paceline.models.planning import plan_matrices
from paceline.models.progress import load_progress
from paceline.models.quantization import HEAD, Quantization, QuantizationPlan, linears
from paceline.models.quantization_config import StoredQuantization
from paceline.models.tying import TABLE, is_stored

Model = TypeVar("Model", bound=LoadedModule)
Build = Callable[[Placement], Model]


def read_weights(
    directory: Path,
    build: Build[Model],
    names: TensorNames,
    entries: Sequence[TensorEntry],
    on: Placement,
    *,
    as_stored: StoredQuantization | None,
    wanted: Quantization | None,
) -> Model:
    """Builds a model and fills it with the tensors of ``directory``, file by file, one tensor in memory at a time.

    Raises:
        CheckpointError: tensors that are missing, unexpected, broken, or of another shape or type than they should be.
        ConfigError: the model cannot be quantised as ``wanted``.
    """
    outline = outline_of(build, directory)
    plan = plan_matrices(outline, names, entries, as_stored, wanted)
    room = _room(outline, plan, torch.device("meta"))
    placed = match(entries, destinations(outline, names, plan, room), names, directory)
    model = _build(build, on, plan)
    room = _room(model, plan, torch.device("cpu"))
    _stream(placed, destinations(model, names, plan, room))
    if isinstance(model, CausalLM) and HEAD in room and not is_stored(TABLE, names):
        table = model.embedding.tokens.weight
        Destination(table.detach(), Part(TABLE)).fill(room[HEAD].dequantised())
    _pack(model, plan, room)
    return model.eval()


def outline_of(build: Build[Model], directory: Path, dtype: torch.dtype = torch.float32) -> Model:
    """A model without memory, so that a config.json that lies allocates nothing.

    Raises:
        CheckpointError: the config describes no possible model.
    """
    try:
        return build(Placement(dtype, torch.device("meta")))
    except (RuntimeError, ArithmeticError, ValueError) as error:
        cause = f"{directory / 'config.json'} describes no possible model: {error}"
        raise CheckpointError(f"{cause}\n{MISMATCH}") from None


def _build(build: Build[Model], on: Placement, plan: QuantizationPlan) -> Model:
    """The model, in which matrices that are quantised have no memory."""
    if not plan.layouts:
        return build(on)
    model = build(replace(on, matrices=torch.device("meta")))
    for name, linear in linears(model).items():
        if name not in plan.layouts and linear.weight.is_meta:
            linear.weight = on.parameter(*linear.weight.shape)
    return model


def _room(model: LoadedModule, plan: QuantizationPlan, device: torch.device) -> dict[str, Stored]:
    """Room for the integers and scales of the linears that tensors of the checkpoint fill."""
    filled = {name: layout for name, layout in plan.layouts.items() if not _from_embedding(model, name)}
    found = linears(model)
    return {name: Stored.empty(layout, found[name].weight.shape, device) for name, layout in filled.items()}


def _from_embedding(model: LoadedModule, name: str) -> bool:
    return name == HEAD and model.config.tied


def _pack(model: LoadedModule, plan: QuantizationPlan, room: dict[str, Stored]) -> None:
    """Packs each linear's integers and gives up their first form before the next."""
    found = linears(model)
    for name, layout in plan.layouts.items():
        linear = found[name]
        stored = Stored.of(linear.weight.detach().cpu(), layout) if _from_embedding(model, name) else room.pop(name)
        try:
            linear.quantise_to(stored.pack(None if linear.bias is None else linear.bias.cpu()))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"the quantised weights of {name} cannot be used: {error}") from None


def _stream(placed: Mapping[str, TensorEntry], wanted: Mapping[str, Destination]) -> None:
    """Copies file by file, one tensor in memory at a time."""
    files: dict[Path, list[str]] = defaultdict(list)
    for name, entry in placed.items():
        files[entry.file].append(name)
    total = sum(destination.num_bytes for destination in wanted.values())
    with load_progress(total) as advance:
        for file, names in files.items():
            with opened(file) as tensors:
                for name in names:
                    try:
                        wanted[name].fill(tensors.get_tensor(placed[name].name))
                    except ValueError as error:
                        raise CheckpointError(f"{file}: tensor {placed[name].name!r}: {error}") from None
                    advance(wanted[name].num_bytes)
