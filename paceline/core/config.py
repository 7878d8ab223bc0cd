"""Engine options, resolved once and never changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from paceline.core.errors import ConfigError


def _from_mapping(cls: type[Any], values: Mapping[str, Any], kind: str) -> Any:
    known = {item.name for item in fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"unknown {kind} option {unknown[0]!r}\nChoose from: {', '.join(sorted(known))}.")
    return cls(**values)


def _at_least(name: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{name} must be an integer of at least {low}, got {value!r}")


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
        _at_least("num_speculative_tokens", self.num_speculative_tokens, 1)
        _at_least("prompt_lookup_min", self.prompt_lookup_min, 1)
        _at_least("prompt_lookup_max", self.prompt_lookup_max, self.prompt_lookup_min)
        if self.num_speculative_tokens > 64:
            raise ConfigError(f"num_speculative_tokens must be at most 64, got {self.num_speculative_tokens}")

    @classmethod
    def of(cls, values: Mapping[str, Any] | SpeculativeConfig | None) -> SpeculativeConfig | None:
        if values is None or isinstance(values, SpeculativeConfig):
            return values
        if not isinstance(values, Mapping) or "method" not in values:
            raise ConfigError('speculative_config needs a "method"\nFor example {"method": "ngram"}.')
        config: SpeculativeConfig = _from_mapping(cls, values, "speculative_config")
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
        _at_least("block_size", self.block_size, 1)
        _at_least("max_num_seqs", self.max_num_seqs, 1)
        _at_least("max_num_batched_tokens", self.max_num_batched_tokens, 1)
        if self.num_blocks is not None:
            _at_least("num_blocks", self.num_blocks, 1)
        if self.max_model_len is not None:
            _at_least("max_model_len", self.max_model_len, 2)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not -(2**63) <= self.seed < 2**63:
            raise ConfigError(f"seed must be a 64-bit integer, got {self.seed!r}")

    @classmethod
    def of(cls, **options: Any) -> EngineConfig:
        """Builds the config from keyword options, naming the first unknown one."""
        config: EngineConfig = _from_mapping(cls, options, "engine")
        return config
