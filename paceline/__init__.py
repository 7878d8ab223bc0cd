"""Paceline: a low-latency LLM inference engine whose speculative decoding never changes the text."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Resolved on first use, so that importing the package loads neither torch nor a model; __init__.pyi has their types.
_HOMES = {
    "LLM": "paceline.engine.llm",
    "SamplingParams": "paceline.core.params",
    "EngineConfig": "paceline.core.config",
    "SpeculativeConfig": "paceline.core.config",
    "RequestOutput": "paceline.core.outputs",
    "CompletionOutput": "paceline.core.outputs",
    "RequestMetrics": "paceline.core.outputs",
    "TokenLogprobs": "paceline.core.outputs",
    "PacelineError": "paceline.core.errors",
    "InvalidRequestError": "paceline.core.errors",
    "ConfigError": "paceline.core.errors",
    "CheckpointError": "paceline.core.errors",
}

__all__ = [
    "LLM",
    "CheckpointError",
    "CompletionOutput",
    "ConfigError",
    "EngineConfig",
    "InvalidRequestError",
    "PacelineError",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "SpeculativeConfig",
    "TokenLogprobs",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'paceline' has no attribute {name!r}")
    if name == "LLM":
        import_module("paceline.core.directory").check_directory()  # torch's libraries end the process else
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
