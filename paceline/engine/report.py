"""What an engine says of itself: counters, acceptance, pages, memory."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paceline.cache import KVGroup
from paceline.engine.engine import Engine
from paceline.engine.facts import EngineFacts
from paceline.engine.memory import store_dtype
from paceline.engine.stats import STEP_TOKENS
from paceline.layers.linear import Linear


def _weight_bytes(model: nn.Module | None) -> int:
    if model is None:
        return 0
    distinct = {tensor.data_ptr(): tensor.nbytes for tensor in model.parameters() if not tensor.is_meta}
    packed = (module.packed for module in model.modules() if isinstance(module, Linear))
    return sum(distinct.values()) + sum(linear.num_bytes for linear in packed if linear is not None)


def _cache_config(engine: Engine) -> dict[str, str | int | bool]:
    """The target's cache, under vLLM's names; a GPU's blocks are those of whatever the device is."""
    group = engine.cache.groups[engine.target_groups[0]]
    return {
        "block_size": group.page_size,
        "num_gpu_blocks": group.pages.num_pages,
        "cache_dtype": _name(store_dtype(engine.config.kv_cache_dtype, engine.runner.model)),
        "enable_prefix_caching": engine.config.enable_prefix_caching,
    }


def engine_stats(engine: Engine) -> dict[str, Any]:
    """Plain numbers, ready for JSON."""
    counters, scheduler, proposer = engine.counters, engine.scheduler, engine.proposer
    return {
        "num_requests_running": len(scheduler.running),
        "num_requests_waiting": len(scheduler.waiting),
        "num_steps": counters.num_steps,
        "eager_steps": dict(engine.computation.eager_steps),
        "num_generated_tokens": counters.num_generated,
        "num_preemptions": scheduler.num_preemptions,
        "finished": dict(counters.finished),
        "speculation": {
            "num_drafts": counters.num_drafts,
            "num_drafted": counters.num_drafted,
            "num_accepted": counters.num_accepted,
            "accepted_per_position": counters.accepted_per_position.tolist(),
            **(asdict(proposer.counters) if proposer is not None else {}),
        },
        "prefix_cache": {"queries": engine.cache.num_prefix_queries, "hits": engine.cache.num_prefix_hits},
        "step_tokens": {
            "up_to": list(STEP_TOKENS),
            "counts": list(counters.step_tokens),
            "total": counters.num_step_tokens,
        },
        "cache_config": _cache_config(engine),
        "pid": os.getpid(),
        "pages": asdict(engine.cache.counts()),
        "memory_bytes": {
            "target_weights": _weight_bytes(engine.runner.model),
            "draft_weights": _weight_bytes(proposer.inner.needs.weights if proposer is not None else None),
            **{f"kv_{group.name}": group.store.num_bytes for group in [*engine.cache.groups, *_own_groups(engine)]},
        },
    }


def _own_groups(engine: Engine) -> list[KVGroup]:
    """Of a drafter whose tokens are its own."""
    own = None if engine.proposer is None else engine.proposer.tools.own
    return [] if own is None else own.cache.groups


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def engine_facts(engine: Engine, model_name: str, model_path: Path, max_model_len: int) -> EngineFacts:
    """How the engine runs; names and lengths are the ``LLM``'s."""
    weight = next(engine.runner.model.parameters())
    config, group = engine.config, engine.cache.groups[engine.target_groups[0]]
    speculative = config.speculative
    return EngineFacts(
        model_name=model_name,
        model_path=str(model_path),
        max_model_len=max_model_len,
        vocab_size=engine.runner.model.config.vocab_size,
        dtype=_name(weight.dtype),
        device=str(weight.device),
        num_threads=torch.get_num_threads(),
        kv_cache_dtype=_name(store_dtype(config.kv_cache_dtype, engine.runner.model)),
        cache=config.cache,
        num_pages=group.pages.num_pages,
        page_size=group.page_size,
        max_num_seqs=config.max_num_seqs,
        scheduling_policy=config.scheduling_policy,
        speculative_method=speculative.method if speculative else None,
        num_speculative_tokens=speculative.num_speculative_tokens if speculative else 0,
        context_overflow=engine.config.context_overflow,
        verifier=speculative.verifier if speculative else None,
    )
