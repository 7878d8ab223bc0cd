"""Engine options, resolved once and never changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from paceline.core.errors import ConfigError, shown

MAX_INT32 = 2**31 - 1
BOUNDS = {
    "num_speculative_tokens": (1, 64),
    "prompt_lookup_max": (1, 32),
    "prompt_lookup_min": (1, 32),
    "block_size": (1, 4096),
    "num_blocks": (1, MAX_INT32),
    "max_model_len": (2, MAX_INT32),
    "max_num_seqs": (1, 4096),
    "max_num_batched_tokens": (1, MAX_INT32),
    "seed": (-(2**63), 2**63 - 1),
}
"""Smallest and largest value of every option that is an integer."""
KINDS: Mapping[type, str] = {str: "text", bool: "true or false", NoneType: "None"}


def _from_mapping(cls: type[Any], values: Mapping[str, Any], kind: str) -> Any:
    known = {item.name for item in fields(cls)}
    unknown = sorted(set(values) - known, key=str)
    if unknown:
        raise ConfigError(f"unknown {kind} option {shown(unknown[0])}\nChoose from: {', '.join(sorted(known))}.")
    return cls(**values)


def _types(cls: type[Any]) -> Mapping[str, tuple[type, ...]]:
    """The types that each option may have, from its annotation."""
    return {name: get_args(hint) or (hint,) for name, hint in get_type_hints(cls).items()}


def _check(config: SpeculativeConfig | EngineConfig) -> None:
    """Every option has its annotated type and lies within its bounds; names of parts are checked by their registry."""
    for name, types in _types(type(config)).items():
        value = getattr(config, name)
        low, high = BOUNDS.get(name, (False, True))
        typed = isinstance(value, types) and (bool in types or not isinstance(value, bool))
        if not typed or (isinstance(value, int) and not low <= value <= high):
            ranged = f"an integer in [{low}, {high}]"
            allowed = " or ".join(ranged if kind is int else KINDS.get(kind, kind.__name__) for kind in types)
            raise ConfigError(f"{name} must be {allowed}, got {shown(value)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculativeConfig:
    """How drafts are made and verified."""

    method: str
    model: str | None = None
    num_speculative_tokens: int = 4
    verifier: str = "match"
    prompt_lookup_max: int = 4
    """ngram: longest n-gram that is looked up."""
    prompt_lookup_min: int = 2
    """ngram: shortest n-gram that is looked up."""

    def __post_init__(self) -> None:
        _check(self)
        if self.prompt_lookup_max < self.prompt_lookup_min:
            raise ConfigError(
                f"prompt_lookup_max must be at least prompt_lookup_min ({self.prompt_lookup_min}), "
                f"got {self.prompt_lookup_max}"
            )

    @classmethod
    def of(cls, values: Mapping[str, Any] | SpeculativeConfig | None) -> SpeculativeConfig | None:
        if values is None or isinstance(values, SpeculativeConfig):
            return values
        if not isinstance(values, Mapping) or "method" not in values:
            raise ConfigError('speculative_config needs a "method"\nFor example {"method": "ngram"}.')
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
        config: SpeculativeConfig = _from_mapping(cls, plain, "speculative_config")
        return config


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Options of one engine; names follow vLLM's."""

    dtype: str = "auto"
    device: str = "auto"
    kv_cache_dtype: str = "auto"
    cache: str = "paged"
    """"paged", "static" (one page of the whole context per sequence) or "none" (recompute; the benchmarks' oracle)."""
    block_size: int = 16
    """Tokens per page."""
    num_blocks: int | None = None
    """Pages of the target's cache; None sizes it for max_num_seqs sequences within the memory budget."""
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    enable_prefix_caching: bool = True
    scheduling_policy: str = "fcfs"
    attention_backend: str = "auto"
    seed: int = 0
    speculative: SpeculativeConfig | None = None

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def of(cls, **options: Any) -> EngineConfig:
        """Builds the config from keyword options, naming the first unknown one."""
        config: EngineConfig = _from_mapping(cls, options, "engine")
        return config
