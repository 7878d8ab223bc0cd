"""Loads, or only outlines, the target and what drafts for it, as the options want them."""

from __future__ import annotations

from pathlib import Path

import torch

from paceline.core.config import EngineConfig
from paceline.engine.choices import draft_quantization, impl_choice, resolve_dtype, target_quantization
from paceline.models import (
    CausalLM,
    DraftModule,
    MedusaHeads,
    Quantization,
    configs_of,
    load_draft_module,
    load_medusa_heads,
    load_model,
    outline_draft_module,
    outline_medusa_heads,
    outline_model,
    resolve_model,
    texts_of,
)
from paceline.runner import model_impls, resolve_impl
from paceline.text import Tokenizer


class ModelLoader:
    """Loads models whole, in the form in which their passes are computed."""

    def __init__(self, model: Path, config: EngineConfig, device: torch.device) -> None:
        self.path, self._config, self._device = model, config, device

    def target(self) -> CausalLM:
        return self._load(self.path, target_quantization(self._config))

    def __call__(self, name: str) -> CausalLM:
        """A draft model."""
        path = resolve_model(name, revision=_revision(self._config))
        return self._load(path, draft_quantization(self._config, path))

    def tokenizer(self, name: str | None) -> Tokenizer | None:
        """A draft model's; None: the target's."""
        return Tokenizer.try_load(self.path if name is None else resolve_model(name, revision=_revision(self._config)))

    def module(self, name: str | None, target: CausalLM) -> DraftModule:
        """A draft module; None: the one in the target's own directory."""
        path = self.path if name is None else resolve_model(name, revision=_revision(self._config))
        module = load_draft_module(path, target, quantization=draft_quantization(self._config, path))
        self._prepare(module)
        return module

    def heads(self, name: str, target: CausalLM) -> MedusaHeads:
        """Medusa heads, computed as their target is."""
        path = resolve_model(name, revision=_revision(self._config))
        heads = load_medusa_heads(path, target, quantization=draft_quantization(self._config, path))
        choice = impl_choice(self._config)
        model_impls[resolve_impl(choice, target, self._device)].prepare_weights(choice, heads)
        return heads

    def _load(self, path: Path, wanted: Quantization | None) -> CausalLM:
        dtype = resolve_dtype(self._config, path, self._device)
        model = load_model(path, dtype=dtype, device=self._device, quantization=wanted)
        self._prepare(model)
        return model

    def _prepare(self, model: CausalLM) -> None:
        choice = impl_choice(self._config)
        model_impls[resolve_impl(choice, model, self._device)].prepare_weights(choice, model)


class ModelOutliner:
    """Makes the same models without the memory of their weights; reads configs only, of a Hub model too."""

    def __init__(self, model: Path, config: EngineConfig, device: torch.device) -> None:
        self.path, self._config, self._device = model, config, device

    def target(self) -> CausalLM:
        return self._outline(self.path, target_quantization(self._config))

    def __call__(self, name: str) -> CausalLM:
        path = configs_of(name, _revision(self._config))
        return self._outline(path, draft_quantization(self._config, path))

    def tokenizer(self, name: str | None) -> Tokenizer | None:
        return Tokenizer.try_load(self.path if name is None else texts_of(name, _revision(self._config)))

    def module(self, name: str | None, target: CausalLM) -> DraftModule:
        path = self.path if name is None else configs_of(name, _revision(self._config))
        return outline_draft_module(path, target, quantization=draft_quantization(self._config, path))

    def heads(self, name: str, target: CausalLM) -> MedusaHeads:
        path = configs_of(name, _revision(self._config))
        return outline_medusa_heads(path, target, quantization=draft_quantization(self._config, path))

    def _outline(self, path: Path, wanted: Quantization | None) -> CausalLM:
        dtype = resolve_dtype(self._config, path, self._device)
        return outline_model(path, dtype=dtype, device=self._device, quantization=wanted, look_at_head=True)


def _revision(config: EngineConfig) -> str | None:
    return config.speculative.revision if config.speculative else None
