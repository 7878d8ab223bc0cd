"""Attention on the native kernels, which read K/V in place and whose rows do not see each other; processors only."""

from __future__ import annotations

import torch

from paceline.attention.base import LayerMap, attention_backends
from paceline.core.batch import Batch
from paceline.core.errors import ConfigError
from paceline.kernels.native import library
from paceline.kernels.native.attention import attend
from paceline.kernels.native.pools import check_pools
from paceline.kernels.native.visibility import Visibility

OTHER = "Set attention_backend to sdpa"


@attention_backends.add("native")
class NativeAttention:
    """A row's bits are those that it has alone, decoded plainly, whatever the batch, the draft and the pages are."""

    def __init__(self, layers: LayerMap, device: torch.device) -> None:
        """Raises:
        ConfigError: there are no native kernels, or none for this device or these layers.
        """
        absence = library.reason()
        if absence is not None:
            raise ConfigError(f"attention_backend=native: {absence.cause}\n{absence.fix} Or: {OTHER}.")
        if device.type != "cpu":
            raise ConfigError(f"attention_backend=native cannot run on {device}\n{OTHER}.")
        for group, index in zip(layers.group_of, layers.index_in_group, strict=True):
            try:
                check_pools(layers.stores[group].pools(index))
            except (TypeError, ValueError) as error:
                cause = str(error).split("\n")[0]
                raise ConfigError(f"attention_backend=native cannot read this cache: {cause}\n{OTHER}.") from error
        self.layers = layers

    def plan(self, batch: Batch) -> None:
        self._seen = [Visibility.of(batch, group) for group in range(len(self.layers.stores))]
        self._cells = []
        for group, store in enumerate(self.layers.stores):
            cells = torch.from_numpy(batch.cells[group])
            self._cells.append((cells // store.page_size, cells % store.page_size))

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        group, index = self.layers.group_of[layer], self.layers.index_in_group[layer]
        store, spec = self.layers.stores[group], self.layers.specs[layer]
        store.write(index, k, v, *self._cells[group])
        return attend(q, store.pools(index), self._seen[group], scale=spec.scale, softcap=spec.softcap)
