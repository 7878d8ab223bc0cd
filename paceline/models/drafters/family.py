"""Knows what a layout of draft modules declares, and which of them a directory has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from paceline.core.errors import CheckpointError
from paceline.core.registry import Registry
from paceline.layers.placement import Placement
from paceline.models.drafters.module import DraftModule
from paceline.models.drafters.source import DraftSource
from paceline.models.family import TensorNames


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftFamily(TensorNames):
    """A layout of draft modules."""

    recognises: Callable[[DraftSource], bool]
    """Whether a directory has this layout; of each directory at most one may say so."""
    read_config: Callable[[DraftSource], Any]
    """What ``build`` needs to know; raises CheckpointError where the module does not fit the target."""
    build: Callable[[Any, Placement], DraftModule]
    """A module without what it shares with the target."""
    token_map: Callable[[DraftSource, Any], torch.Tensor | None]
    """i64[head rows] the token of each row of the output matrix; None: all of them in order."""
    named: Callable[[DraftSource], TensorNames] | None = None
    """The names in a directory, where they hang on what lies there."""

    @classmethod
    def of(
        cls,
        names: TensorNames,
        *,
        recognises: Callable[[DraftSource], bool],
        read_config: Callable[[DraftSource], Any],
        build: Callable[[Any, Placement], DraftModule],
        token_map: Callable[[DraftSource, Any], torch.Tensor | None] = lambda _source, _config: None,
    ) -> DraftFamily:
        """Of a layout with the same names in every directory."""
        return cls(
            names=names.names,
            prefixes=names.prefixes,
            skipped=names.skipped,
            recognises=recognises,
            read_config=read_config,
            build=build,
            token_map=token_map,
        )


draft_modules: Registry[DraftFamily] = Registry("layout of draft modules")


def family_of(source: DraftSource) -> DraftFamily:
    """
    Raises:
        CheckpointError: none of the layouts that are known.
    """
    for name in draft_modules:
        if draft_modules[name].recognises(source):
            return draft_modules[name]
    names = [entry.name for entry in source.entries[:3]]
    found = f"whose tensors begin with {', '.join(names)}" if names else "by its config.json"
    raise CheckpointError(
        f"{source.directory} is no draft module that is known, {found}\n"
        f'Give one of these as speculative_config["model"]: {", ".join(sorted(draft_modules))}; '
        'or set "method" to draft_model if it is a whole model.'
    )
