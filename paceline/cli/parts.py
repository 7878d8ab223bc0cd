"""Knows which options name a part, so that an unknown name is told with its source, before any model is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paceline.core.errors import ConfigError
from paceline.core.registry import Registry
from paceline.core.resolution import Source

AUTO = "auto"


def registries() -> Mapping[str, Registry[Any]]:
    """Option -> the parts that it chooses from."""
    from paceline.attention import attention_backends
    from paceline.cache import cache_kinds, store_dtypes
    from paceline.engine.overflow import context_overflows
    from paceline.models import schemes
    from paceline.runner import model_impls, numerics
    from paceline.scheduling import policies
    from paceline.speculation import proposers, verifiers

    return {
        "cache": cache_kinds,
        "kv_cache_dtype": store_dtypes,
        "attention_backend": attention_backends,
        "model_impl": model_impls,
        "numerics": numerics,
        "scheduling_policy": policies,
        "quantization": schemes,
        "context_overflow": context_overflows,
        "method": proposers,
        "verifier": verifiers,
    }


def check_parts(options: Mapping[str, Any], sources: Mapping[str, Source]) -> None:
    """Looks up every part that options name; ``sources`` says where each option came from.

    Raises:
        ConfigError: naming the flag, the variable or the file's key, and the parts there are.
    """
    for name, parts in registries().items():
        if options.get(name, AUTO) == AUTO:
            continue
        try:
            parts[options[name]]
        except ConfigError as error:
            source = sources.get(name)
            raise ConfigError(f"{source.name}: {error}" if source is not None else str(error)) from None
