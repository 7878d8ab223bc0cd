"""Decides how many pages each layer group gets, within what the device has free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from paceline.cache import CacheKind, DenseStore, KVGroup, PageAllocator, store_dtypes
from paceline.cache.stores import page_bytes
from paceline.core.config import EngineConfig
from paceline.core.errors import ConfigError
from paceline.core.layer import LayerSpec
from paceline.core.machine import memory
from paceline.models import CausalLM
from paceline.runner.model_runner import layers_by_lifetime

CACHE_SHARE = 0.4
"""Share of the free memory that the K/V cache may take once it is full; pages take none before they are used."""


def free_bytes(device: torch.device) -> int:
    """Memory that could still be allocated on the device; on Linux counts what would be given up of the file cache."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return memory().available


def store_dtype(name: str, model: CausalLM) -> torch.dtype:
    if name != "auto":
        return store_dtypes[name]
    return next(model.parameters()).dtype


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """A layer group to be: whose, its window, its layers and the type of its K/V."""

    model: int
    name: str
    window: int | None
    specs: list[LayerSpec]
    dtype: torch.dtype
    feature_size: int = 0
    """Numbers per token that are kept for drafters."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How the K/V memory will lie."""

    groups: list[GroupPlan]
    bytes_per_page: int
    """Of one page in every group."""
    pages_per_sequence: int
    """In each group, of the longest sequence."""
    num_pages: int
    """Of each group."""


def plan_memory(
    config: EngineConfig,
    kind: CacheKind,
    models: Sequence[tuple[str, CausalLM]],
    *,
    max_slots: int,
    free: int,
    feature_size: int = 0,
) -> MemoryPlan:
    """Finds out what fits; the models' weights are not looked at and may have no memory.

    Args:
        models: (name, model), the target first.
        max_slots: of the longest sequence with its draft.
        free: bytes that could still be had.
        feature_size: numbers per token that are kept of the target for drafters.

    Raises:
        ConfigError: too little memory, with what would fit.
    """
    groups = [
        GroupPlan(
            number,
            name if window is None else f"{name}, window {window}",
            window,
            [model.layer_specs[layer] for layer in layers],
            store_dtype(config.kv_cache_dtype, model),
        )
        for number, (name, model) in enumerate(models)
        for window, layers in layers_by_lifetime(model.layer_specs).items()
    ]
    if feature_size:
        groups[_feature_home(groups)] = replace(groups[_feature_home(groups)], feature_size=feature_size)
    bytes_per_page = sum(page_bytes(group.specs, kind.page_size, group.dtype, group.feature_size) for group in groups)
    per_sequence = -(-max_slots // kind.page_size)
    num_pages = _num_pages(config, kind.page_size, bytes_per_page, per_sequence, free)
    return MemoryPlan(groups, bytes_per_page, per_sequence, num_pages)


def build_groups(
    config: EngineConfig,
    kind: CacheKind,
    models: Sequence[tuple[str, CausalLM]],
    *,
    max_slots: int,
    device: torch.device,
    feature_size: int = 0,
) -> list[list[KVGroup]]:
    """Lays out the K/V memory: for each (name, model) its groups, one per attention window."""
    plan = plan_memory(config, kind, models, max_slots=max_slots, free=free_bytes(device), feature_size=feature_size)
    result: list[list[KVGroup]] = [[] for _ in models]
    for part in plan.groups:
        store = _store(part, plan, kind.page_size, device)
        pages = PageAllocator(plan.num_pages)
        group = KVGroup(part.name, store, pages, num_seats=config.max_num_seqs, max_slots=max_slots, window=part.window)
        result[part.model].append(group)
    return result


def _feature_home(groups: Sequence[GroupPlan]) -> int:
    """The group of the target that keeps features: one that keeps whole sequences, if there is one."""
    own = [number for number, group in enumerate(groups) if group.model == 0]
    return next((number for number in own if groups[number].window is None), own[0])


def _store(part: GroupPlan, plan: MemoryPlan, page_size: int, device: torch.device) -> DenseStore:
    try:
        return DenseStore(
            part.specs,
            num_pages=plan.num_pages + 1,
            page_size=page_size,
            dtype=part.dtype,
            device=device,
            feature_size=part.feature_size,
        )
    except MemoryError:
        raise ConfigError(
            f"the system gives no {(plan.num_pages + 1) * plan.bytes_per_page / 2**20:.0f} MiB for the K/V cache\n"
            f"Set num_blocks to at most {max(1, plan.num_pages // 2)}, or raise the limit on this process's memory."
        ) from None


def _num_pages(config: EngineConfig, page_size: int, bytes_per_page: int, per_sequence: int, free: int) -> int:
    if config.num_blocks is not None:
        _check_fits(config.num_blocks, bytes_per_page, free)
        return config.num_blocks
    affordable = int(free * CACHE_SHARE) // bytes_per_page
    if affordable < per_sequence:
        longest = max(0, affordable * page_size - 64)
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
