"""Knows how K/V lie in memory, as [page, kv_head, slot, dim] per layer; knows nothing of who owns a page."""

from __future__ import annotations

import math
from typing import Protocol

import torch

from paceline.core.layer import LayerSpec
from paceline.core.pages import HUGE, allocate
from paceline.core.registry import Registry


class KVStore(Protocol):
    """The K/V cells of one layer group. A cell is addressed by (page, offset), or by page * page_size + offset."""

    page_size: int
    features: torch.Tensor | None
    """f[page, slot, F] what else is kept of each token, for drafters."""

    @property
    def num_bytes(self) -> int: ...

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor, pages: torch.Tensor, offsets: torch.Tensor) -> None:
        """Stores k, v [T, kv_head, dim] at (pages[t], offsets[t])."""
        ...

    def read(self, layer: int, pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of pages i64[..., P], as [..., P, kv_head, page_size, dim] in the compute dtype."""
        ...

    def pools(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The memory of K and V itself, [page, kv_head, slot, dim], for kernels that read it in place."""
        ...

    def move(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copies cells (i64[n] flat addresses) in every layer; all are read before any is written."""
        ...

    def copy_page(self, source: int, target: int) -> None: ...

    def clear_pages(self, pages: list[int]) -> None:
        """Zeroes pages whose content may be NaN, which even a masked attention would spread."""
        ...


store_dtypes: Registry[torch.dtype] = Registry("kv_cache_dtype")
store_dtypes.add("float32")(torch.float32)
store_dtypes.add("bfloat16")(torch.bfloat16)
store_dtypes.add("float16")(torch.float16)
store_dtypes.add("float64")(torch.float64)


class DenseStore:
    """K/V kept as they are, in one floating-point type."""

    def __init__(
        self,
        specs: list[LayerSpec],
        *,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device | str,
        feature_size: int = 0,
    ) -> None:
        self.page_size = page_size
        shape, wide = (num_pages, page_size, feature_size), feature_dtype(dtype)
        self.features = _zeros(shape, wide, device, 2 * len(specs)) if feature_size else None
        self._k, self._v = (
            [
                _zeros((num_pages, spec.num_kv_heads, page_size, spec.head_dim), dtype, device, 2 * layer + part)
                for layer, spec in enumerate(specs)
            ]
            for part in range(2)
        )

    @property
    def num_bytes(self) -> int:
        return sum(cells.numel() * cells.element_size() for cells in self._memory)

    @property
    def _memory(self) -> list[torch.Tensor]:
        """Page by page."""
        return [*self._k, *self._v] + ([] if self.features is None else [self.features])

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor, pages: torch.Tensor, offsets: torch.Tensor) -> None:
        cells_k, cells_v = self._k[layer], self._v[layer]
        cells_k[pages, :, offsets] = k.to(cells_k.dtype)
        cells_v[pages, :, offsets] = v.to(cells_v.dtype)

    def read(self, layer: int, pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._k[layer][pages], self._v[layer][pages]

    def pools(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._k[layer], self._v[layer]

    def move(self, source: torch.Tensor, target: torch.Tensor) -> None:
        from_page, from_offset = source // self.page_size, source % self.page_size
        to_page, to_offset = target // self.page_size, target % self.page_size
        for cells in (*self._k, *self._v):
            cells[to_page, :, to_offset] = cells[from_page, :, from_offset]
        if self.features is not None:
            self.features[to_page, to_offset] = self.features[from_page, from_offset]

    def copy_page(self, source: int, target: int) -> None:
        for cells in self._memory:
            cells[target] = cells[source]

    def clear_pages(self, pages: list[int]) -> None:
        for cells in self._memory:
            cells[pages] = 0


SKEW = 9 * 4096
"""Bytes by which the next one of several caches begins later within its first huge page: the same cells of all layers
would else compete for the same lines of the processor's caches."""


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str, number: int) -> torch.Tensor:
    """Zeros, not just room: attention multiplies masked cells by zero, and zero times NaN is NaN.

    In a processor's memory the system makes them zeros when they are first touched, in huge pages where it has them:
    a cache may be far larger than what is ever in it.

    Raises:
        MemoryError: there is no room.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if torch.device(device).type != "cpu" or num_bytes < HUGE:
        return torch.zeros(shape, dtype=dtype, device=device)
    skew = number * SKEW % HUGE
    room = allocate(num_bytes + skew, huge=True)
    return torch.frombuffer(room, dtype=torch.uint8, offset=skew).view(dtype).view(shape)


def feature_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of features beside K/V of ``dtype``."""
    return torch.promote_types(dtype, torch.float32)


def page_bytes(specs: list[LayerSpec], page_size: int, dtype: torch.dtype, feature_size: int = 0) -> int:
    """Bytes of one page over all layers of a group: K, V and features."""
    cells = sum(2 * spec.num_kv_heads * spec.head_dim * dtype.itemsize for spec in specs)
    return page_size * (cells + feature_size * feature_dtype(dtype).itemsize)
