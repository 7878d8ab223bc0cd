"""Builds an engine from options: devices, models, memory, parts; the only place that knows how they fit together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from paceline.cache import CacheKind, CacheManager, KVGroup, PrefixIndex, cache_kinds, prefix_indexes
from paceline.core.config import EngineConfig
from paceline.core.errors import ConfigError
from paceline.core.seats import Seats
from paceline.engine.choices import impl_choice, resolve_device
from paceline.engine.engine import Engine
from paceline.engine.loading import ModelLoader
from paceline.engine.memory import build_groups
from paceline.engine.threads import limit_threads
from paceline.models import CausalLM
from paceline.runner import ModelRunner
from paceline.sampling import Pipeline, SamplingState
from paceline.scheduling import Scheduler
from paceline.speculation import DraftLoader, GuardedProposer, OwnMemory, ProposerTools, proposers, verifiers


def build_engine(model_path: Path, config: EngineConfig) -> Engine:
    """Loads the models and joins the parts.

    Raises:
        ConfigError: options that cannot work, naming the one to change.
        CheckpointError: a model that cannot be loaded.
    """
    device = resolve_device(config.device)
    limit_threads()
    loader = ModelLoader(model_path, config, device)
    return join_parts(loader.target(), config, device, loader)


def context_length(config: EngineConfig, target: CausalLM) -> int:
    """max_model_len, or the model's own context."""
    longest = target.config.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > longest:
        raise ConfigError(
            f"max_model_len is {config.max_model_len}, the model's positions end at {longest}\n"
            f"Set max_model_len to at most {longest}."
        )
    return config.max_model_len or longest


def make_proposer(config: EngineConfig, target: CausalLM, load: DraftLoader) -> GuardedProposer | None:
    """The drafter that the options name.

    Raises:
        ConfigError: options that cannot work together, naming the one to change.
    """
    options = config.speculative
    if options is None:
        return None
    verifier = verifiers[options.verifier]
    inner = proposers[options.method](options, target, load)
    if inner.needs.makes_trees and not verifier.takes_trees:
        able = ", ".join(sorted(name for name in verifiers if verifiers[name].takes_trees))
        raise ConfigError(
            f"the {options.method} method drafts trees, the {options.verifier} verifier takes only chains\n"
            f'Set speculative_config["verifier"] to one that takes trees: {able}.'
        )
    return GuardedProposer(
        inner,
        name=options.method,
        vocab_size=target.config.vocab_size,
        max_depth=options.num_speculative_tokens,
        takes_trees=verifier.takes_trees,
    )


def _prefix_index(config: EngineConfig, kind: CacheKind, groups: Sequence[KVGroup]) -> PrefixIndex:
    """Pages that slide out of a window cannot be found again, so windowed models share no prefixes."""
    usable = config.enable_prefix_caching and kind.retains and all(group.window is None for group in groups)
    allocators = [group.pages for group in groups]
    most = config.prefix_cache_max_entries or max(allocator.num_pages for allocator in allocators)
    return prefix_indexes["lru" if usable else "none"](allocators, kind.page_size, most)


def feature_size(proposer: GuardedProposer | None) -> int:
    """Numbers per token that are kept of the target for the drafter."""
    kept = None if proposer is None else proposer.inner.needs.features
    return 0 if kept is None else kept.size


def join_parts(target: CausalLM, config: EngineConfig, device: torch.device, load: DraftLoader) -> Engine:
    """Lays out memory for the target and the drafter and wires everything into one engine."""
    verifier = verifiers[config.speculative.verifier if config.speculative else "match"]()
    proposer = make_proposer(config, target, load)
    models = [("target", target)] + ([("draft", proposer.model)] if proposer and proposer.model else [])
    max_len = context_length(config, target)
    max_slots = max_len + most_nodes(config, proposer)
    groups, cache, own_cache = _memory(config, models, max_slots, device, proposer)
    seats = Seats(config.max_num_seqs, max_len)
    state = SamplingState(seats, target.config.vocab_size, device)
    pipeline = Pipeline(state)
    choice = impl_choice(config)
    runners = [ModelRunner(m, part, choice=choice, device=device) for (_, m), part in zip(models, groups, strict=True)]
    if proposer is not None:
        runners[0].kept = proposer.inner.needs.features
        further = proposer.inner.needs.writer
        tools = ProposerTools(
            seats,
            cache,
            pipeline,
            runners[1] if len(runners) > 1 else None,
            range(len(groups[0]), len(cache.groups)),
            max_rows=config.max_num_batched_tokens,
            target=runners[0],
            writer=None if further is None else ModelRunner(further, groups[1], choice=choice, device=device),
            needs_probs=verifier.needs_probs,
            own=None if own_cache is None else _own_memory(config, models[1][1], max_slots, own_cache),
        )
        proposer.bind(tools)
    own = list(range(len(groups[0])))
    scheduler = Scheduler(config, seats=seats, cache=cache, sampling=state, proposer=proposer, target_groups=own)
    return Engine(
        config,
        seats=seats,
        cache=cache,
        scheduler=scheduler,
        runner=runners[0],
        pipeline=pipeline,
        verifier=verifier,
        proposer=proposer,
    )


def most_nodes(config: EngineConfig, proposer: GuardedProposer | None) -> int:
    """Slots that the largest draft takes behind a sequence's last token."""
    if config.speculative is None or proposer is None:
        return 0
    return proposer.num_nodes(config.speculative.num_speculative_tokens)


def _own_memory(config: EngineConfig, draft: CausalLM, max_slots: int, cache: CacheManager) -> OwnMemory:
    """Of sequences as long as the target's, or as the draft's context allows."""
    longest = min(max_slots, draft.config.max_position_embeddings)
    return OwnMemory(Seats(config.max_num_seqs, longest), cache)


def _memory(
    config: EngineConfig,
    models: Sequence[tuple[str, CausalLM]],
    max_slots: int,
    device: torch.device,
    proposer: GuardedProposer | None,
) -> tuple[list[list[KVGroup]], CacheManager, CacheManager | None]:
    """Each model's layer groups, the manager of all of them, and one of the draft's alone if its tokens are its own."""
    apart = proposer is not None and proposer.inner.needs.own_tokens
    kind, features = cache_kinds[config.cache](config.block_size, max_slots), feature_size(proposer)
    groups = build_groups(config, kind, models, max_slots=max_slots, device=device, feature_size=features)
    shared = [group for part in groups[: 1 if apart else None] for group in part]
    manager = CacheManager(shared, kind, _prefix_index(config, kind, shared))
    if not apart:
        return groups, manager, None
    nothing_shared = prefix_indexes["none"]([group.pages for group in groups[1]], kind.page_size, 0)
    return groups, manager, CacheManager(groups[1], kind, nothing_shared)
