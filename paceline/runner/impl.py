"""Knows which implementation of a model can compute its passes here, and which one an option means."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from paceline.attention import LayerMap
from paceline.core.errors import CheckpointError, ConfigError
from paceline.core.registry import Registry
from paceline.layers.linear import Linear
from paceline.models import CausalLM
from paceline.runner.executor import Executor
from paceline.runner.native import NativeExecutor, obstacle, obstacle_of_layers, pack_weights, packed_growth
from paceline.runner.numerics import numerics
from paceline.runner.torch_executor import TorchExecutor

AUTO = "auto"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """Options that decide how passes are computed."""

    model_impl: str = AUTO
    attention_backend: str = AUTO
    numerics: str = "exact"


@dataclass(frozen=True, slots=True)
class ModelImpl:
    """One implementation."""

    build: Callable[[Choice, CausalLM, LayerMap, torch.device], Executor]
    obstacle: Callable[[Choice, CausalLM, torch.device], str | None]
    """Why it cannot compute this model, if it cannot."""
    prepare_weights: Callable[[Choice, nn.Module], None]
    """Gives a loaded model, which nobody else will use, the form in which its weights are read."""
    growth: Callable[[Choice, CausalLM], int]
    """Bytes that this form takes more than the weights as they are loaded, for a model that may have no memory yet."""
    keeps_half: bool
    """A row's bits do not depend on other rows, so that half types do not make ties fall either way."""


model_impls: Registry[ModelImpl] = Registry("model_impl")
"""In the order in which "auto" prefers them."""


def resolve_impl(choice: Choice, model: CausalLM, device: torch.device) -> str:
    """The name of the implementation that the options mean for this model, which may have no memory yet.

    Raises:
        ConfigError: the one that was asked for cannot compute it.
    """
    name = choice.model_impl
    if name == AUTO:
        return next(able for able in model_impls if model_impls[able].obstacle(choice, model, device) is None)
    reason = model_impls[name].obstacle(choice, model, device)
    if reason is not None:
        raise ConfigError(f'model_impl="{name}" cannot be used: {reason}\nSet model_impl to "auto" or "torch".')
    return name


def build_executor(choice: Choice, model: CausalLM, layers: LayerMap, device: torch.device) -> Executor:
    """
    Raises:
        ConfigError: as ``resolve_impl``.
    """
    name = resolve_impl(choice, model, device)
    reason = obstacle_of_layers(model, device) if choice.model_impl == AUTO else None
    if reason is not None:
        log.warning("model_impl native cannot be used: %s; %s computes this model, more slowly", reason, name)
    return model_impls[name].build(choice, model, layers, device)


def _native(choice: Choice, model: CausalLM, layers: LayerMap, device: torch.device) -> Executor:
    return numerics[choice.numerics].join(NativeExecutor(model, layers), lambda: _torch(choice, model, layers, device))


def _native_obstacle(choice: Choice, model: CausalLM, device: torch.device) -> str | None:
    if choice.attention_backend not in (AUTO, "native"):
        return f'attention_backend="{choice.attention_backend}" belongs to torch'
    return obstacle(model, device)


def _torch(choice: Choice, model: CausalLM, layers: LayerMap, device: torch.device) -> Executor:
    backend = choice.attention_backend if choice.attention_backend != AUTO else "sdpa"
    return TorchExecutor(model, layers, attention_backend=backend, device=device)


def _no_obstacle(choice: Choice, model: CausalLM, device: torch.device) -> None:  # noqa: ARG001
    return None


def _pack(choice: Choice, model: nn.Module) -> None:
    pack_weights(model, release=not numerics[choice.numerics].keeps_weights)


def _packed_growth(choice: Choice, model: CausalLM) -> int:
    return packed_growth(model) if not numerics[choice.numerics].keeps_weights else 0


def _no_growth(choice: Choice, model: CausalLM) -> int:  # noqa: ARG001
    return 0


def _unpack(choice: Choice, model: nn.Module) -> None:  # noqa: ARG001
    """Torch reads weights as they are loaded, and what quantised ones stand for."""
    for name, module in model.named_modules():
        if isinstance(module, Linear) and module.quantised:
            try:
                module.dequantise(next(model.parameters()).device)
            except ValueError as error:
                raise CheckpointError(f"the quantised weights of {name}: {error}") from None


model_impls.add("native")(ModelImpl(_native, _native_obstacle, _pack, _packed_growth, keeps_half=True))
model_impls.add("torch")(ModelImpl(_torch, _no_obstacle, _unpack, _no_growth, keeps_half=False))
