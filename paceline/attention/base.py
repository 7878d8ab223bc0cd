"""The attention protocol: plan a batch once, then attend in every layer through the pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from paceline.cache.stores import KVStore
from paceline.core.batch import Batch
from paceline.core.layer import LayerSpec
from paceline.core.registry import Registry


@dataclass(frozen=True, slots=True)
class LayerMap:
    """Where each layer of one model keeps its K/V."""

    specs: Sequence[LayerSpec]
    stores: Sequence[KVStore]  # per group
    group_of: Sequence[int]  # layer -> index into stores
    index_in_group: Sequence[int]  # layer -> layer number within its store


class AttentionBackend(Protocol):
    """Rows write their K/V to the pool first and attend through the pool, whatever the batch looks like."""

    def plan(self, batch: Batch) -> None:
        """Prepares what all layers share: indexes and masks of this batch."""
        ...

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q [T, H, dim], k and v [T, KV, dim] -> [T, H, dim]."""
        ...


class BackendBuilder(Protocol):
    def __call__(self, layers: LayerMap, device: torch.device) -> AttentionBackend: ...


attention_backends: Registry[BackendBuilder] = Registry("attention_backend")
