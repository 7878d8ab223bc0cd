"""Knows what lies in a draft module's directory, under any of the names that its layout allows; builds nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from paceline.core.errors import CheckpointError
from paceline.core.files import is_fetched
from paceline.models.base import CausalLM
from paceline.models.checkpoint import INDEX, PICKLES, SINGLE, TensorEntry, opened, read_header, read_index
from paceline.models.config import Fields, read_json
from paceline.models.family import TensorNames
from paceline.models.placing import names_of

MEDUSA_FILE = "medusa_lm_head.safetensors"
"""As the first Medusa checkpoints call their only file."""


@dataclass(frozen=True)
class DraftSource:
    """A draft module's directory, and the target that it is for."""

    directory: Path
    fields: Fields
    """config.json; code that it names is neither read nor run."""
    entries: Sequence[TensorEntry]
    """Its tensors; none if only config.json is there."""
    target: CausalLM

    @classmethod
    def read(cls, directory: Path, target: CausalLM, *, weights: bool) -> DraftSource:
        """
        Raises:
            CheckpointError: config.json or safetensors that are missing or broken.
        """
        config = directory / "config.json"
        entries = read_entries(directory) if weights else []
        return cls(directory, Fields(config, read_json(config)), entries, target)

    @property
    def kinds(self) -> list[str]:
        """What config.json calls it, in small letters."""
        values = self.fields.values
        return [str(kind).lower() for kind in (values.get("speculators_model_type"), *values.get("architectures", []))]

    def layer_fields(self, *keys: str) -> Fields:
        """Where config.json describes the layers: the first of these objects that it has, or config.json itself."""
        key = next((key for key in keys if key in self.fields.values), None)
        return self.fields if key is None else self.fields.nested(key)

    def under(self, names: TensorNames) -> Tensors:
        """Its tensors by every name that a layout has for them."""
        return Tensors({name: entry for entry in self.entries for name in reversed(names_of(entry, names))})

    def misfit(self, what: str, advice: str) -> CheckpointError:
        return CheckpointError(f"{self.directory}: {what}\n{advice}")


@dataclass(frozen=True)
class Tensors:
    """The tensors of a directory by name; of a directory without weights nothing is known."""

    by_name: dict[str, TensorEntry]

    @cached_property
    def _modules(self) -> frozenset[str]:
        return frozenset(name.rpartition(".")[0] for name in self.by_name)

    def has_module(self, name: str, *, unknown: bool) -> bool:
        """Whether there are tensors directly below ``name``."""
        return name in self._modules if self.by_name else unknown

    def has(self, name: str, *, unknown: bool) -> bool:
        return name in self.by_name if self.by_name else unknown

    def rows(self, name: str) -> int | None:
        """How many rows the module's weight has, stored as it was or quantised."""
        for stored in ("weight", "weight_packed"):
            entry = self.by_name.get(f"{name}.{stored}")
            if entry is not None and entry.shape:
                return entry.shape[0]
        return None

    def load(self, name: str) -> torch.Tensor | None:
        entry = self.by_name.get(name)
        if entry is None:
            return None
        with opened(entry.file) as tensors:
            found: torch.Tensor = tensors.get_tensor(entry.name)
            return found


def read_entries(directory: Path) -> list[TensorEntry]:
    """Every tensor in ``directory``, headers only.

    Raises:
        CheckpointError: no safetensors, or broken ones.
    """
    if is_fetched(directory / MEDUSA_FILE) and not (directory / SINGLE).is_file():
        return read_header(directory / MEDUSA_FILE)
    pickles = sorted(file.name for file in directory.iterdir() if file.suffix in PICKLES)
    if pickles and not any((directory / name).is_file() for name in (SINGLE, INDEX)):
        raise CheckpointError(
            f"{directory} holds its weights only as pickles ({pickles[0]}), which can run code when opened\n"
            "Convert them once, with safetensors.torch: "
            f"save_file(torch.load({pickles[0]!r}, weights_only=True), {SINGLE!r})."
        )
    return read_index(directory)
