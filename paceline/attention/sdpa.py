"""Attention on torch's fused scaled_dot_product_attention, over gathered pages; any device, any batch."""

from __future__ import annotations

import torch
from torch.nn import functional

from paceline.attention.base import LayerMap, attention_backends
from paceline.attention.spans import Span, spans_of
from paceline.core.batch import Batch
from paceline.core.layer import LayerSpec


@attention_backends.add("sdpa")
class SdpaAttention:
    """Heads that share a K/V head are folded into the query rows, so K/V are never repeated."""

    def __init__(self, layers: LayerMap, device: torch.device) -> None:
        self.layers, self.device = layers, device

    def plan(self, batch: Batch) -> None:
        self._spans = []
        self._cells = []
        self._masks: dict[tuple[int, int], torch.Tensor] = {}
        for group, store in enumerate(self.layers.stores):
            cells = torch.from_numpy(batch.cells[group]).to(self.device)
            self._cells.append((cells // store.page_size, cells % store.page_size))
            self._spans.append(spans_of(batch, group, store.page_size, self.device))

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        group, index = self.layers.group_of[layer], self.layers.index_in_group[layer]
        store, spec = self.layers.stores[group], self.layers.specs[layer]
        store.write(index, k, v, *self._cells[group])
        spans = self._spans[group]
        if spans[0].scatter is None:  # the only span, in order: nothing to gather
            return self._block(layer, q.unflatten(0, spans[0].rows.shape), spans[0]).flatten(0, 1)
        out = torch.empty_like(q)
        for span in spans:
            assert span.scatter is not None
            cells, rows = span.scatter
            out[rows] = self._block(layer, q[span.rows], span).flatten(0, 1)[cells]
        return out.view(-1, spec.num_heads, spec.head_dim)

    def _block(self, layer: int, q: torch.Tensor, span: Span) -> torch.Tensor:
        """q [b, Q, H, dim] -> [b, Q, H, dim]."""
        group, spec = self.layers.group_of[layer], self.layers.specs[layer]
        k, v = self.layers.stores[group].read(self.layers.index_in_group[layer], span.pages)
        # [b, P, KV, page, dim] -> [b, KV, S, dim]
        k, v = (x.transpose(1, 2).flatten(2, 3)[:, :, : span.num_slots].to(q.dtype) for x in (k, v))
        fold = spec.num_heads // spec.num_kv_heads
        folded = q.unflatten(2, (spec.num_kv_heads, fold)).permute(0, 2, 3, 1, 4).flatten(2, 3)  # [b, KV, fold*Q, dim]
        mask = self._folded_mask(span, fold)
        out = (
            _softcapped(folded, k, v, mask, spec)
            if spec.softcap is not None
            else functional.scaled_dot_product_attention(folded, k, v, attn_mask=mask, scale=spec.scale)
        )
        result: torch.Tensor = out.unflatten(2, (fold, q.shape[1])).permute(0, 3, 1, 2, 4).flatten(2, 3)
        return result

    def _folded_mask(self, span: Span, fold: int) -> torch.Tensor | None:
        """bool[b, 1, fold * Q, S]: the span's mask for each of the heads folded into its rows; made once per pass."""
        if span.mask is None or fold == 1:
            return span.mask
        key = id(span), fold
        if key not in self._masks:
            self._masks[key] = span.mask.repeat(1, 1, fold, 1)
        return self._masks[key]


def _softcapped(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, spec: LayerSpec
) -> torch.Tensor:
    assert spec.softcap is not None
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = spec.softcap * torch.tanh(q.to(wide) @ k.to(wide).transpose(-1, -2) * (spec.scale / spec.softcap))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ v.to(wide)).to(q.dtype)
