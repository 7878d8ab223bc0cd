"""Knows how a Hugging Face directory becomes a model in memory: checked first, then streamed tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from paceline.core.errors import CheckpointError, ConfigError
from paceline.core.files import is_fetched
from paceline.layers.placement import Placement
from paceline.models.base import CausalLM
from paceline.models.checkpoint import FLOATS, TensorEntry, read_index, weights_are_there
from paceline.models.config import DTYPES, Fields, ModelConfig, read_json
from paceline.models.family import Family, families
from paceline.models.filling import outline_of, read_weights
from paceline.models.hub import configs_of, resolve_model
from paceline.models.planning import expected_layouts
from paceline.models.quantization import Quantization, outline_matrices
from paceline.models.quantization_config import read_quantization
from paceline.models.tying import settle_head

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
    """Whether a model directory's weights are stored quantised; code that its config.json names is not asked about.

    Raises:
        CheckpointError: a config.json that is missing or broken, or quantised in a way that is not supported.
    """
    config = configs_of(path) / "config.json"
    return read_quantization(Fields(config, read_json(config))) is not None


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
    as_stored = read_quantization(_read_fields(directory / "config.json"))
    build = partial(families[config.family].build, config)
    return read_weights(directory, build, family, entries, on, as_stored=as_stored, wanted=quantization)


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
    return outline_of(partial(families[config.family].build, config), directory, dtype)
