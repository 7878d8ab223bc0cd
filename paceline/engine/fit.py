"""Knows what a model would need and how much of it fits, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from paceline.cache import cache_kinds
from paceline.core.config import EngineConfig
from paceline.core.errors import ConfigError
from paceline.engine.build import context_length, feature_size, make_proposer, most_nodes
from paceline.engine.choices import impl_choice, resolve_device
from paceline.engine.loading import ModelOutliner
from paceline.engine.memory import free_bytes, plan_memory
from paceline.engine.pair import EMBEDDED_TARGET
from paceline.models import CausalLM, configs_of, texts_of
from paceline.runner import activation_bytes, model_impls, resolve_impl
from paceline.speculation import GuardedProposer

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Fit:
    """What an engine would take, in bytes, and what it would hold."""

    device: str
    dtype: str
    kv_cache_dtype: str
    max_model_len: int
    free_bytes: int
    weight_bytes: dict[str, int]
    """Of the target, and of the draft model if there is one."""
    activation_bytes: int
    """About what the largest steps take between their ops; it comes from what the K/V cache leaves."""
    kv_cache_bytes: int
    num_pages: int
    page_size: int
    """Tokens per page."""
    num_full_sequences: int
    """Sequences of the whole context that find room at the same time."""


def fit(model: str | Path | None, config: EngineConfig) -> Fit:
    """What an engine of these options would take; reads configs only, of a Hub model too, and of weights that are
    there whether a tied pair is one matrix.

    Raises:
        ConfigError: it cannot fit, with what would; or options that cannot work.
        CheckpointError: a config that is missing or broken.
    """
    device = resolve_device(config.device)
    target, proposer = _outlines(model, config, device)
    models = [("target", target)] + ([("draft", proposer.model)] if proposer and proposer.model else [])
    weights = {"target": _weight_bytes(target) + _growth(target, config, device)}
    if proposer is not None and (drafter := proposer.inner.needs.weights) is not None:
        growth = _growth(drafter, config, device) if isinstance(drafter, CausalLM) else 0
        weights["draft"] = _weight_bytes(drafter, besides=target) + growth
    free = free_bytes(device)
    left = free - sum(weights.values())
    if left <= 0:
        raise ConfigError(
            f"the weights need {sum(weights.values()) / GIB:.1f} GiB as {_name(target.dtype)}, "
            f"{free / GIB:.1f} GiB can be had\nGive a smaller model{_cheaper(target.dtype)}, or free memory."
        )
    max_len = context_length(config, target)
    max_slots = max_len + most_nodes(config, proposer)
    kind = cache_kinds[config.cache](config.block_size, max_slots)
    plan = plan_memory(config, kind, models, max_slots=max_slots, free=left, feature_size=feature_size(proposer))
    return Fit(
        device=str(device),
        dtype=_name(target.dtype),
        kv_cache_dtype=_name(plan.groups[0].dtype),
        max_model_len=max_len,
        free_bytes=free,
        weight_bytes=weights,
        activation_bytes=_activations(models, proposer, config),
        kv_cache_bytes=plan.num_pages * plan.bytes_per_page,
        num_pages=plan.num_pages,
        page_size=kind.page_size,
        num_full_sequences=min(plan.num_pages // plan.pages_per_sequence, config.max_num_seqs),
    )


def _outlines(
    model: str | Path | None, config: EngineConfig, device: torch.device
) -> tuple[CausalLM, GuardedProposer | None]:
    """The target and the drafter, without the memory of their weights."""

    files_of = configs_of if config.speculative is None else texts_of
    path = EMBEDDED_TARGET if model is None else files_of(model, config.revision)
    outliner = ModelOutliner(path, config, device)
    target = outliner.target()
    return target, make_proposer(config, target, outliner)


def _activations(models: Sequence[tuple[str, CausalLM]], proposer: GuardedProposer | None, config: EngineConfig) -> int:
    """Of the models together: a recorded round has buffers of both."""
    rows = config.max_num_batched_tokens
    samples = min(config.max_num_seqs * (most_nodes(config, proposer) + 1), rows)
    return sum(activation_bytes(model, rows=rows, samples=samples) for _, model in models)


def _weight_bytes(model: nn.Module, besides: nn.Module | None = None) -> int:
    """Bytes of a model's parameters, but for those that it shares with another."""
    # Parameters without memory have no address; those that are tied are listed once.
    shared = set() if besides is None else {id(parameter) for parameter in besides.parameters()}
    own = [parameter for parameter in model.parameters() if id(parameter) not in shared]
    return sum(parameter.numel() * parameter.element_size() for parameter in own)


def _growth(model: CausalLM, config: EngineConfig, device: torch.device) -> int:
    choice = impl_choice(config)
    return model_impls[resolve_impl(choice, model, device)].growth(choice, model)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _cheaper(dtype: torch.dtype) -> str:
    return ", set dtype to bfloat16" if dtype.itemsize > 2 else ""
