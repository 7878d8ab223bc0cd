"""Knows what a model family declares: how its config is read, its model built and its checkpoint names understood."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from paceline.core.registry import Registry
from paceline.layers.placement import Placement
from paceline.models.base import CausalLM
from paceline.models.config import Fields

LAYER = "blocks.{layer}"
"""A layer in the names of our own modules."""


@dataclass(frozen=True, slots=True)
class Part:
    """Where one checkpoint module goes: a module of the model, and which projection of a packed one."""

    module: str
    index: int | None = None
    """None fills the whole module: a plain one, or one that the checkpoint packs in the same order."""
    transposed: bool = False
    """The checkpoint stores its matrices [in, out]."""
    by_unit: bool = False
    """The checkpoint stores one head of each projection, then the next head of each."""
    repeated: bool = False
    """The checkpoint stores one row for all rows of the part."""
    plus: float = 0.0
    """What the checkpoint leaves out: its weights are stored less this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorNames:
    """How a checkpoint calls its tensors."""

    names: Mapping[str, Part]
    """Checkpoint module -> Part; ``{layer}`` stands for each layer's number in both. Modules that the model does not
    have (an absent norm, a tied head) are passed over."""
    skipped: tuple[str, ...] = ()
    """Regular expressions of checkpoint tensors that hold nothing learned, or nothing that is served."""
    prefixes: tuple[tuple[str, str], ...] = ()
    """(what some exports put in front of a tensor's name, what ``names`` has there)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family(TensorNames):
    """A model family."""

    read_config: Callable[[Fields, Fields | None], Any]
    """(config.json, generation_config.json) -> the family's ModelConfig."""
    build: Callable[[Any, Placement], CausalLM]


families: Registry[Family] = Registry("model family")
