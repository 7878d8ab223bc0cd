"""Knows how a Hugging Face directory becomes a model in memory: checked first, then streamed tensor by tensor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from paceline.core.errors import CheckpointError, ConfigError
from paceline.core.files import is_fetched
from paceline.layers.placement import Placement
from paceline.models.base import CausalLM
from paceline.models.checkpoint import FLOATS, TensorEntry, opened, read_index, weights_are_there
from paceline.models.compressed import Stored
from paceline.models.config import DTYPES, Fields, ModelConfig, read_json
from paceline.models.destination import Destination
from paceline.models.family import Family, Part, families
from paceline.models.hub import configs_of, resolve_model
from paceline.models.placing import MISMATCH, destinations, match
from paceline.models.planning import expected_layouts, plan_matrices
from paceline.models.progress import load_progress
from paceline.models.quantization import HEAD, Quantization, QuantizationPlan, linears, outline_matrices
from paceline.models.quantization_config import read_quantization
from paceline.models.tying import TABLE, is_stored, settle_head

# Keys that make other loaders import or download code.
CODE_KEYS = ("auto_map", "trust_remote_code", "_attn_implementation_internal", "_experts_implementation_internal")


def load_config(path: str | Path) -> ModelConfig:
    """Reads a model directory's config.json (written before or since Transformers 5) and generation_config.json.

    Raises:
        CheckpointError: a file is missing, broken or unsupported, or asks for code to be run.
    """
    directory = resolve_model(path)
    fields = _read_fields(directory / "config.json")
    family = _family(fields)
    generation = directory / "generation_config.json"
    config = family.read_config(fields, Fields(generation, read_json(generation)) if is_fetched(generation) else None)
    if not isinstance(config, ModelConfig):
        raise TypeError(f"family {fields.values['model_type']!r} must read a ModelConfig")
    return config


def read_checkpoint(directory: Path) -> tuple[ModelConfig, Family, list[TensorEntry]]:
    """A directory's config and family, as its tensors make them, and these tensors.

    Raises:
        CheckpointError: as ``load_config``; or weights that are missing, broken or no safetensors.
    """
    config, entries = load_config(directory), read_index(directory)
    return *settle_head(config, families[config.family], entries), entries


def is_quantised(path: str | Path) -> bool:
    """Whether a model directory's weights are stored quantised.

    Raises:
        CheckpointError: as ``load_config``, or quantised in a way that is not supported.
    """
    return read_quantization(_read_fields(configs_of(path) / "config.json")) is not None


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
    quantization: Quantization | None = None,
) -> CausalLM:
    """Loads a Hugging Face model directory, or a Hub id, for inference.

    Args:
        path: a directory with config.json and safetensors, or a Hub id.
        dtype: float32, bfloat16, float16 or float64. "auto" is the checkpoint's own, except that float16 becomes
            float32 on the CPU, where half-precision arithmetic is slow and overflows early.
        device: where the parameters lie.
        quantization: how linears are quantised while they are read, tensor by tensor, so that no more than one of them
            is ever held as the checkpoint has it. A checkpoint that is quantised already is taken as it is.

    Raises:
        CheckpointError: the directory is incomplete, corrupt, unsupported or unsafe; the message names the file.
        ConfigError: ``dtype`` is none of the above, or the model cannot be quantised so.
    """
    directory = resolve_model(path)
    config, family, entries = read_checkpoint(directory)
    on = Placement(_resolve_dtype(dtype, config, entries, torch.device(device)), torch.device(device))
    outline = outline_config(config, directory)
    as_stored = read_quantization(_read_fields(directory / "config.json"))
    plan = plan_matrices(outline, family, entries, as_stored, quantization)
    room = _room(outline, plan, torch.device("meta"))
    placed = match(entries, destinations(outline, family, plan, room), family, directory)
    model = _build(config, on, plan)
    room = _room(model, plan, torch.device("cpu"))
    _stream(placed, destinations(model, family, plan, room))
    if not is_stored(TABLE, family):
        table = model.embedding.tokens.weight
        Destination(table.detach(), Part(TABLE)).fill(room[HEAD].dequantised())
    _pack(model, plan, room)
    return model.eval()


def _build(config: ModelConfig, on: Placement, plan: QuantizationPlan) -> CausalLM:
    """The model, in which matrices that are quantised have no memory."""
    if not plan.layouts:
        return families[config.family].build(config, on)
    model = families[config.family].build(config, replace(on, matrices=torch.device("meta")))
    for name, linear in linears(model).items():
        if name not in plan.layouts and linear.weight.is_meta:
            linear.weight = on.parameter(*linear.weight.shape)
    return model


def _room(model: CausalLM, plan: QuantizationPlan, device: torch.device) -> dict[str, Stored]:
    """Room for the integers and scales of the linears that tensors of the checkpoint fill."""
    filled = {name: layout for name, layout in plan.layouts.items() if not _from_embedding(model, name)}
    found = linears(model)
    return {name: Stored.empty(layout, found[name].weight.shape, device) for name, layout in filled.items()}


def _from_embedding(model: CausalLM, name: str) -> bool:
    return name == HEAD and model.config.tied


def _pack(model: CausalLM, plan: QuantizationPlan, room: dict[str, Stored]) -> None:
    """Packs each linear's integers and gives up their first form before the next."""
    found = linears(model)
    for name, layout in plan.layouts.items():
        linear = found[name]
        stored = Stored.of(linear.weight.detach().cpu(), layout) if _from_embedding(model, name) else room.pop(name)
        try:
            linear.quantise_to(stored.pack(None if linear.bias is None else linear.bias.cpu()))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"the quantised weights of {name} cannot be used: {error}") from None


def _read_fields(path: Path) -> Fields:
    values = read_json(path)
    for key in CODE_KEYS:
        # "trust_remote_code": false asks for nothing.
        if key in values and values[key] is not False:
            known = values.get("model_type") in families
            way = "remove the key from a copy of the file" if known else "use a version of the model that needs none"
            raise CheckpointError(
                f"{path} has {key!r}: the model asks for code from its own repository to be run\n"
                f"Paceline never runs a checkpoint's code; {way}."
            )
    return Fields(path, values)


def _family(fields: Fields) -> Family:
    kind = fields.values.get("model_type")
    if not isinstance(kind, str) or kind not in families:
        supported = ", ".join(sorted(families))
        raise CheckpointError(f"{fields.path}: model_type {kind!r} is not supported\nSupported: {supported}.")
    return families[kind]


def _resolve_dtype(
    dtype: torch.dtype | str, config: ModelConfig, entries: Sequence[TensorEntry], device: torch.device
) -> torch.dtype:
    if dtype == "auto":
        stored = config.dtype or DTYPES.get(FLOATS.get(entries[0].dtype if entries else "", ""), torch.float32)
        return torch.float32 if stored == torch.float16 and device.type == "cpu" else stored
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in DTYPES.values():
        raise ConfigError(f"dtype {dtype!r} is not supported\nChoose one of: auto, {', '.join(DTYPES)}.")
    return chosen


def outline_model(
    path: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
    quantization: Quantization | None = None,
    look_at_head: bool = False,
) -> CausalLM:
    """The model as ``load_model`` would make it, from config.json alone: parameters have sizes and no memory.

    Quantised matrices are bytes, as many as they will take packed.

    Args:
        look_at_head: whether to compare the output matrix of a tied pair with the table, if the weights are there.

    Raises:
        CheckpointError, ConfigError: as ``load_model``.
    """
    directory = configs_of(path)
    config = load_config(directory)
    if look_at_head and config.tied and weights_are_there(directory):
        config, _, _ = read_checkpoint(directory)
    model = outline_config(config, directory, _resolve_dtype(dtype, config, [], torch.device(device)))
    stored = read_quantization(_read_fields(directory / "config.json"))
    outline_matrices(model, expected_layouts(model, stored, quantization))
    return model


def outline_config(config: ModelConfig, directory: Path, dtype: torch.dtype = torch.float32) -> CausalLM:
    """A model without memory, so that a config.json that lies allocates nothing.

    Raises:
        CheckpointError: the config describes no possible model.
    """
    try:
        return families[config.family].build(config, Placement(dtype, torch.device("meta")))
    except (RuntimeError, ArithmeticError, ValueError) as error:
        cause = f"{directory / 'config.json'} describes no possible model: {error}"
        raise CheckpointError(f"{cause}\n{MISMATCH}") from None


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
