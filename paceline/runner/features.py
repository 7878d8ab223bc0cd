"""What passes of the target leave behind for drafters: a row per slot, in the pages that hold the slot's K/V."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from paceline.cache.group import KVGroup
from paceline.cache.stores import KVStore


@dataclass(frozen=True, slots=True)
class KeptFeatures:
    """What a drafter wants to be kept of each of the target's rows.

    It lies in the target's own pages, so that it is shared, copied, moved and given back with them: a prefix that is
    found again brings its features along.
    """

    size: int
    """F, the width of a kept row."""
    taps: tuple[int, ...] = ()
    """Layers of the target whose incoming residual stream is read; none: what leaves its final norm."""
    fuse: nn.Module = field(default_factory=nn.Identity)
    """f[T, len(taps) * D], or f[T, D] without taps, -> f[T, F]."""

    def source(self, hidden: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
        """What ``fuse`` is given of a pass."""
        if not self.taps:
            return hidden
        assert features is not None
        return features


def flat_features(store: KVStore) -> torch.Tensor | None:
    """f[cells, F] what is kept of tokens beside their K/V, in the memory of the store itself."""
    return None if store.features is None else store.features.view(-1, store.features.shape[2])


def feature_group(groups: list[KVGroup]) -> tuple[int, torch.Tensor] | None:
    """The number of the group that has features, and these as f[cells, F]."""
    for number, group in enumerate(groups):
        features = flat_features(group.store)
        if features is not None:
            return number, features
    return None
