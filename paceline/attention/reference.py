"""Attention spelled out, one request at a time: the oracle that other backends are compared with."""

from __future__ import annotations

import numpy as np
import torch

from paceline.attention.base import LayerMap, attention_backends
from paceline.attention.spans import visible_slots
from paceline.core.batch import Batch


@attention_backends.add("reference")
class ReferenceAttention:
    """Softmax in the wider of fp32 and the model's type, with every mask explicit."""

    def __init__(self, layers: LayerMap, device: torch.device) -> None:
        self.layers, self.device = layers, device

    def plan(self, batch: Batch) -> None:
        self._batch = batch

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        group = self.layers.group_of[layer]
        store, index = self.layers.stores[group], self.layers.index_in_group[layer]
        cells = torch.from_numpy(self._batch.cells[group]).to(self.device)
        store.write(index, k, v, cells // store.page_size, cells % store.page_size)
        parts = [self._request(layer, q, number) for number in range(len(self._batch.context))]
        return torch.cat(parts)

    def _request(self, layer: int, q: torch.Tensor, number: int) -> torch.Tensor:
        batch, spec, group = self._batch, self.layers.specs[layer], self.layers.group_of[layer]
        store = self.layers.stores[group]
        rows = np.arange(batch.row_start[number], batch.row_start[number + 1])
        num_slots = int(batch.num_slots[number])
        pages = batch.page_table[group][number][: -(-num_slots // store.page_size)].astype(np.int64)
        k, v = store.read(self.layers.index_in_group[layer], torch.from_numpy(pages).to(self.device))
        wide = torch.promote_types(q.dtype, torch.float32)
        keys, values = (
            x.transpose(0, 1).flatten(1, 2)[:, :num_slots].to(wide).repeat_interleave(spec.num_heads // x.shape[1], 0)
            for x in (k, v)
        )
        scores = q[rows].to(wide).transpose(0, 1) @ keys.transpose(1, 2) * spec.scale  # [H, rows, S]
        if spec.softcap is not None:
            scores = spec.softcap * torch.tanh(scores / spec.softcap)
        seen = visible_slots(batch, group, rows[None], np.array([number]), num_slots)[0]
        scores = scores.masked_fill(~torch.from_numpy(seen).to(self.device), float("-inf"))
        return (scores.softmax(-1) @ values).transpose(0, 1).to(q.dtype)
