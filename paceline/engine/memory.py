"""Decides how many pages each layer group gets, within what the device has free."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from paceline.cache import CacheKind, DenseStore, LayerGroup, PageAllocator, store_dtypes
from paceline.cache.stores import page_bytes
from paceline.core.config import EngineConfig
from paceline.core.errors import ConfigError
from paceline.core.layer import LayerSpec
from paceline.models import CausalLM
from paceline.runner.model_runner import layers_by_lifetime

CACHE_SHARE = 0.4
"""Share of the free memory that the K/V cache may take."""
MEMORY_INFO = Path("/proc/meminfo")


def free_bytes(device: torch.device) -> int:
    """Memory that could still be allocated on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if MEMORY_INFO.is_file():  # Linux: counts what it would give up of its file cache
        available = re.search(r"^MemAvailable: +(\d+) kB$", MEMORY_INFO.read_text(encoding="ascii"), re.MULTILINE)
        if available is not None:
            return int(available[1]) * 1024
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2**32


def store_dtype(name: str, model: CausalLM) -> torch.dtype:
    if name != "auto":
        return store_dtypes[name]
    return next(model.parameters()).dtype


def build_groups(
    config: EngineConfig,
    kind: CacheKind,
    models: Sequence[tuple[str, CausalLM]],
    *,
    max_slots: int,
    device: torch.device,
) -> list[list[LayerGroup]]:
    """Lays out the K/V memory: for each (name, model) its groups, one per attention window."""
    planned = [
        (
            number,
            name,
            window,
            [model.layer_specs[layer] for layer in layers],
            store_dtype(config.kv_cache_dtype, model),
        )
        for number, (name, model) in enumerate(models)
        for window, layers in layers_by_lifetime(model.layer_specs).items()
    ]
    num_pages = _num_pages(config, kind, [(specs, dtype) for _, _, _, specs, dtype in planned], max_slots, device)
    result: list[list[LayerGroup]] = [[] for _ in models]
    for number, name, window, specs, dtype in planned:
        store = DenseStore(specs, num_pages=num_pages + 1, page_size=kind.page_size, dtype=dtype, device=device)
        label = name if window is None else f"{name}, window {window}"
        pages = PageAllocator(num_pages)
        group = LayerGroup(label, store, pages, num_seats=config.max_num_seqs, max_slots=max_slots, window=window)
        result[number].append(group)
    return result


def _num_pages(
    config: EngineConfig,
    kind: CacheKind,
    groups: Sequence[tuple[list[LayerSpec], torch.dtype]],
    max_slots: int,
    device: torch.device,
) -> int:
    bytes_per_page = sum(page_bytes(specs, kind.page_size, dtype) for specs, dtype in groups)
    if config.num_blocks is not None:
        _check_fits(config.num_blocks, bytes_per_page, free_bytes(device))
        return config.num_blocks
    per_sequence = -(-max_slots // kind.page_size)
    affordable = int(free_bytes(device) * CACHE_SHARE) // bytes_per_page
    if affordable < per_sequence:
        longest = max(0, affordable * kind.page_size - 64)
        raise ConfigError(
            f"the K/V cache of one full context needs {per_sequence * bytes_per_page / 2**20:.0f} MiB, "
            f"{affordable * bytes_per_page / 2**20:.0f} MiB can be had\nSet max_model_len to at most {longest}."
        )
    return min(affordable, config.max_num_seqs * per_sequence)


def _check_fits(num_pages: int, bytes_per_page: int, free: int) -> None:
    most = free // bytes_per_page - 1  # one more page takes the writes of padding
    if num_pages > most:
        advice = f"Set num_blocks to at most {most}." if most > 0 else "Set block_size lower, or free memory."
        raise ConfigError(
            f"num_blocks={num_pages} needs {(num_pages + 1) * bytes_per_page / 2**20:.0f} MiB, "
            f"{free / 2**20:.0f} MiB can be had\n{advice}"
        )
