"""Knows how a quantised model directory is written, tensor by tensor, from one that is not; nothing of engines."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from paceline.core.errors import CheckpointError, ConfigError
from paceline.core.files import is_fetched
from paceline.models.checkpoint import INDEX, SINGLE, TensorEntry, opened
from paceline.models.compressed import PackedLayout, Stored
from paceline.models.config import read_json
from paceline.models.family import Family
from paceline.models.hub import resolve_model
from paceline.models.loader import is_quantised, outline_config, read_checkpoint
from paceline.models.placing import Place, destinations, match, places
from paceline.models.planning import plan_matrices
from paceline.models.progress import load_progress
from paceline.models.quantization import HEAD, Quantization, schemes
from paceline.models.quantization_config import KEY, write_quantization

TAKEN_ALONG = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
"""What belongs to a model beside its weights; some of it only other programs read."""
SHARD_BYTES = 4 * 2**30
TRANSFORMERS_HEAD = "lm_head"
"""What Transformers 5 calls every output matrix, whatever its files do."""


@dataclass(frozen=True, slots=True)
class Published:
    """A directory that was written."""

    path: Path
    bytes_before: int
    """Of the tensors in the source's safetensors."""
    bytes_after: int
    num_quantised: int
    """Matrices, as the checkpoint counts them."""


def quantise_checkpoint(
    model: str | Path,
    out: Path,
    quantization: Quantization,
    *,
    revision: str | None = None,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Published:
    """Writes ``model`` quantised to the directory ``out``, one source tensor in memory beside the current shard.

    The integers and scales are those that ``load_model(model, quantization=quantization)`` makes. The output matrix is
    stored as it was, as other programs expect, and quantised whenever the directory is read. ``revision`` is a branch,
    tag or commit of a model of the Hub.

    Raises:
        ConfigError: ``out`` holds something already, or the model cannot be quantised so.
        CheckpointError: as ``load_model``.
    """
    source = resolve_model(model, also=TAKEN_ALONG, revision=revision)
    _check_place(source, out, overwrite)
    if is_quantised(source):
        raise ConfigError(f"{source} is quantised already\nGive the unquantised model.")
    config, family, entries = read_checkpoint(source)
    outline = outline_config(config, source)
    plan = plan_matrices(outline, family, entries, None, quantization)
    placed = match(entries, destinations(outline, family), family, source)
    quantised = _quantised(places(outline, family), placed, plan.made)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as made:
        _copy_files(source, Path(made))
        num_bytes = _write_tensors(entries, quantised, Path(made), shard_bytes)
        _write_config(source, Path(made), _heads(family, placed), quantization)
        _move(Path(made), out)
    return Published(out, sum(entry.num_bytes for entry in entries), num_bytes, len(quantised))


def _check_place(source: Path, out: Path, overwrite: bool) -> None:
    if out.resolve() == source.resolve():
        raise ConfigError(f"{out} is the model itself\nName another directory.")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file\nName a directory.")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ConfigError(f"{out} holds files already\nAdd --force to write over a model there, or name another.")


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A source tensor that is quantised."""

    layout: PackedLayout
    transposed: bool


def _quantised(
    found: Sequence[Place], placed: Mapping[str, TensorEntry], layouts: Mapping[str, PackedLayout]
) -> dict[str, _Matrix]:
    """By the names that the source has."""
    return {
        placed[f"{place.theirs}.weight"].name: _Matrix(layouts[place.ours], place.part.transposed)
        for place in found
        if place.ours in layouts and place.ours != HEAD
    }


def _tensors(entries: Sequence[TensorEntry], quantised: Mapping[str, _Matrix]) -> Iterator[dict[str, torch.Tensor]]:
    """What each source tensor becomes."""
    files: dict[Path, list[str]] = defaultdict(list)
    for entry in entries:
        files[entry.file].append(entry.name)
    for file, names in files.items():
        with opened(file) as tensors:
            for name in names:
                tensor = tensors.get_tensor(name)
                matrix = quantised.get(name)
                try:
                    yield {name: tensor} if matrix is None else _stored(name, tensor, matrix)
                except ValueError as error:
                    raise CheckpointError(f"{file}: tensor {name!r}: {error}") from None


def _stored(name: str, tensor: torch.Tensor, matrix: _Matrix) -> dict[str, torch.Tensor]:
    weight = tensor.t() if matrix.transposed else tensor
    stored, prefix = Stored.of(weight, matrix.layout), name.removesuffix("weight")
    # int4's scales are float16 numbers.
    scale = stored.scale.half() if matrix.layout.group_size else stored.scale
    parts = {prefix + matrix.layout.integers: stored.integers.contiguous(), f"{prefix}weight_scale": scale.contiguous()}
    return parts | ({f"{prefix}weight_shape": torch.tensor(weight.shape)} if matrix.layout.packs else {})


def _write_tensors(
    entries: Sequence[TensorEntry], quantised: Mapping[str, _Matrix], out: Path, shard_bytes: int
) -> int:
    """Shards of at most ``shard_bytes``, or of one source tensor; returns the bytes of all tensors."""
    shards: list[list[str]] = []
    waiting: dict[str, torch.Tensor] = {}
    total = 0

    def flush() -> None:
        save_file(waiting, out / f"{len(shards)}.safetensors", metadata={"format": "pt"})
        shards.append(list(waiting))
        waiting.clear()

    with load_progress(sum(entry.num_bytes for entry in entries), "quantising") as advance:
        for entry, made in zip(_in_order(entries), _tensors(entries, quantised), strict=True):
            size = sum(tensor.nbytes for tensor in made.values())
            if waiting and size + sum(tensor.nbytes for tensor in waiting.values()) > shard_bytes:
                flush()
            waiting.update(made)
            total += size
            advance(entry.num_bytes)
        flush()
    _name_shards(shards, out, total)
    return total


def _in_order(entries: Sequence[TensorEntry]) -> list[TensorEntry]:
    """As ``_tensors`` visits them."""
    return [entry for file in dict.fromkeys(entry.file for entry in entries) for entry in entries if entry.file == file]


def _name_shards(shards: Sequence[Sequence[str]], out: Path, total: int) -> None:
    if len(shards) == 1:
        (out / "0.safetensors").rename(out / SINGLE)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        (out / f"{number}.safetensors").rename(out / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _copy_files(source: Path, out: Path) -> None:
    """Everything of a model that is no weights: the tokenizer's files, the generation config."""
    for pattern in TAKEN_ALONG:
        for file in source.glob(pattern):
            if file.name not in ("config.json", INDEX) and is_fetched(file):
                shutil.copyfile(file, out / file.name)


def _heads(family: Family, placed: Mapping[str, TensorEntry]) -> list[str]:
    """What the output matrix is called: by the family, and in this file if an export renamed it."""
    heads = [theirs for theirs, part in family.names.items() if part.module == HEAD]
    names = [placed[f"{head}.weight"].name.removesuffix(".weight") for head in heads if f"{head}.weight" in placed]
    return list(dict.fromkeys([*heads, *names, TRANSFORMERS_HEAD]))


def _write_config(source: Path, out: Path, heads: Sequence[str], quantization: Quantization) -> None:
    scheme = schemes[quantization.scheme]
    layout = PackedLayout(scheme.kind, quantization.group_size if scheme.grouped else 0)
    config = read_json(source / "config.json")
    config[KEY] = write_quantization(layout, ignored=heads, head=quantization.scheme)
    (out / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _move(made: Path, out: Path) -> None:
    """Puts the files in place; weights of a model that was there before would be read beside the new ones."""
    out.mkdir(exist_ok=True)
    for stale in [*out.glob("*.safetensors"), out / INDEX]:
        stale.unlink(missing_ok=True)
    for file in sorted(made.iterdir()):
        shutil.move(file, out / file.name)
