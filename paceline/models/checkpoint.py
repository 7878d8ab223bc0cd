"""Knows which safetensors files a model directory has and which tensor lies in which; never opens a pickle."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from paceline.core.errors import CheckpointError
from paceline.core.files import is_fetched
from paceline.models.config import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a checkpoint, as its file's header describes it."""

    file: Path
    name: str
    """As the file has it."""
    shape: tuple[int, ...]
    dtype: str
    """As safetensors spells it: "BF16", "F32", ..."""

    @property
    def num_bytes(self) -> int:
        """For types whose name ends with their bits."""
        bits = re.search(r"\d+", self.dtype)
        return math.prod(self.shape) * (int(bits[0]) if bits else 8) // 8


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """Maps one safetensors file.

    Raises:
        CheckpointError: the file is missing, not fetched, truncated or corrupt; also while tensors are read from it.
    """
    is_fetched(file)
    try:
        with safe_open(file, framework="pt", device="cpu") as tensors:
            yield tensors
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing\nDownload the model again.") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is truncated or corrupt: {error}\nDownload it again, or save it again with safetensors."
        ) from None


def read_index(directory: Path) -> list[TensorEntry]:
    """Every tensor of the checkpoint in ``directory``, file by file; reads headers only.

    Where a single file lies beside an index, the single file counts, as in transformers, unless it holds only a part of
    what the index lists or is broken, and the index's files are whole.

    Raises:
        CheckpointError: no safetensors, a corrupt file, or an index that does not fit its files.
    """
    single, index = directory / SINGLE, directory / INDEX
    if single.is_file():
        return _read_either(single, index) if index.is_file() else read_header(single)
    if not index.is_file():
        raise _without_safetensors(directory)
    return _read_indexed(index)


def _read_either(single: Path, index: Path) -> list[TensorEntry]:
    alone, indexed = (_attempt(read, path) for read, path in ((read_header, single), (_read_indexed, index)))
    if isinstance(indexed, CheckpointError):
        if isinstance(alone, CheckpointError):
            raise CheckpointError(f"{_cause(alone)}; and {_cause(indexed)}\nDownload the model again.")
        return alone
    if isinstance(alone, CheckpointError):
        log.warning("%s; the files that %s lists are read instead", _cause(alone), index.name)
        return indexed
    lacking = {entry.name for entry in indexed} - {entry.name for entry in alone}
    if not lacking:
        return alone
    named = single, len(lacking), len(indexed), index.name
    log.warning("%s lacks %d of the %d tensors that %s lists; the files that it lists are read instead", *named)
    return indexed


def _attempt(read: Callable[[Path], list[TensorEntry]], path: Path) -> list[TensorEntry] | CheckpointError:
    try:
        return read(path)
    except CheckpointError as error:
        return error


def _cause(error: CheckpointError) -> str:
    return str(error).partition("\n")[0]


def weights_are_there(directory: Path) -> bool:
    """Whether there is a single file of weights, or every file that an index names; opens none of them."""
    if (directory / SINGLE).is_file():
        return True
    try:
        placed = _weight_map(directory / INDEX)
    except CheckpointError:
        return False
    return all((directory / file).is_file() for file in set(placed.values()))


def why_incomplete(directory: Path) -> str | None:
    """What keeps the files that a directory's index lists from being read, if it has one; for errors alone."""
    broken = _attempt(_read_indexed, directory / INDEX) if (directory / INDEX).is_file() else []
    return _cause(broken) if isinstance(broken, CheckpointError) else None


def _read_indexed(index: Path) -> list[TensorEntry]:
    """The tensors that an index lists, each from the file in which it places it."""
    directory, placed = index.parent, _weight_map(index)
    entries = [entry for file in sorted(set(placed.values())) for entry in read_header(directory / file)]
    found = {entry.name: entry.file.name for entry in entries}
    for name, file in placed.items():
        if found.get(name) != file:
            raise CheckpointError(
                f"{directory / file} has no tensor {name!r}, which {INDEX} places there\nDownload both again."
            )
    return [entry for entry in entries if placed.get(entry.name) == entry.file.name]


def read_header(file: Path) -> list[TensorEntry]:
    """Every tensor of one safetensors file; raises as ``opened``."""
    with opened(file) as tensors:
        slices = [(name, tensors.get_slice(name)) for name in tensors.keys()]  # noqa: SIM118
        return [TensorEntry(file, name, tuple(part.get_shape()), part.get_dtype()) for name, part in slices]


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor name -> file name, the names checked: a file must lie in the model's own directory."""
    placed = read_json(path).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise CheckpointError(f"{path} has no weight_map\nDownload the file again.")
    for name, file in placed.items():
        safe = isinstance(file, str) and file.endswith(".safetensors") and not set(file) & set("/\\:\0")
        if not safe or file.startswith("."):
            raise CheckpointError(
                f"{path} places tensor {name!r} in {file!r}, which is not a safetensors file of its own directory\n"
                "Do not use this checkpoint unless you trust where it comes from and have corrected the index."
            )
    return placed


def _without_safetensors(directory: Path) -> CheckpointError:
    for name in (SINGLE, INDEX):
        is_fetched(directory / name)
    pickles = sorted(file.name for file in directory.iterdir() if file.suffix in PICKLES)
    if pickles:
        return CheckpointError(
            f"{directory} holds its weights only as pickles ({pickles[0]}), which can run code when opened\n"
            "Convert them to safetensors: save_pretrained of a recent transformers does."
        )
    return CheckpointError(f"{directory} has neither {SINGLE} nor {INDEX}\nGive a complete model directory.")
